#!/usr/bin/env bash
# Trains on spot TPUs until the job is done: a queued resource that is created again after every
# preemption. Each life of the VM is handled by tpu_vm.sh; the run goes on from its last checkpoint.
#
# usage: launch/tpu_queued.sh ACTION --name=NAME --zone=ZONE --workdir=gs://BUCKET/PATH [OPTION ...]
#                             [-- --config.KEY=VALUE ...]
#
# ACTION
#   train    queue, wait, set up, train; on preemption delete and queue again; delete at the end,
#            after a failure and on Ctrl-C. An existing queued resource of this name is gone on with
#   status   print the state of the queued resource (nothing where there is none)
#   delete   delete the queued resource and its VM; succeeds when they are already gone
#
# OPTIONS
#   --workdir=DIR       gs://BUCKET/PATH: the disk of a preempted VM is lost
#   --accelerator=TYPE  e.g. v5litepod-8 (default), v6e-8, v5p-8, v4-8
#   --runtime=VERSION   TPU software version (default: the one for TYPE)
#   --config=RECIPE       recipe, a file or e.g. cls:rsna (default: configs/cls.py:rsna)
#   --data=DIR          raw images: gs://BUCKET/PATH, or a path on the workers (default: none)
#   --project=ID        Google Cloud project (default: that of gcloud)
#   --on-demand         not spot: waits in the queue, but is not preempted
#   --create-flag=FLAG  one more flag of `gcloud compute tpus queued-resources create`; may be repeated
#   --max-restarts=N    give up after N restarts, of whatever cause (default: 50)
#   --poll=SECONDS      between looks at the state, and between two tries after a failure (default: 30)
#   --keep              never delete at the end; the same command attaches to it again
#   --dry-run           print the commands of one life without a preemption, and run none
#   --help              print this

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

die() { echo "tpu_queued.sh: $*" >&2; exit 2; }
say() { echo "tpu_queued.sh: $*" >&2 || true; }

# Prints words as one line that a POSIX shell reads back. Not `printf %q`: its $'...' is bash only.
quote() {
  local word line=""
  for word in "$@"; do
    case $word in
      "" | *[!A-Za-z0-9_@%+=:,./-]*) word="'${word//\'/\'\\\'\'}'" ;;
    esac
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

run() {
  if $dry_run; then quote "$@" && return; fi
  echo "+ $(quote "$@")" >&2 || true # a closed terminal must not stop a clean-up
  "$@"
}

action="" name="" zone="" accelerator=v5litepod-8 runtime="" config=configs/cls.py:rsna
workdir="" data="" project="" poll=30 spot=true keep=false dry_run=false
max_restarts=50 create_flags=() overrides=()
while (($#)); do
  case $1 in
    --help | -h) sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 0 ;;
    --name=* | --zone=* | --accelerator=* | --runtime=* | --config=* | --workdir=* | --data=* | \
      --project=* | --poll=*) key=${1%%=*} && printf -v "${key#--}" %s "${1#*=}" ;;
    --max-restarts=*) max_restarts=${1#*=} ;;
    --create-flag=*) create_flags+=("${1#*=}") ;;
    --on-demand) spot=false ;;
    --keep) keep=true ;;
    --dry-run) dry_run=true ;;
    --) shift && overrides=("$@") && break ;;
    -*) die "unknown option $1; see --help (options are written --key=value)" ;;
    *) [[ -z $action ]] || die "one action only, got $action and $1" && action=$1 ;;
  esac
  shift
done
case $action in
  train) [[ $workdir == gs://* ]] || die "--workdir=gs://BUCKET/PATH is needed: the disk of a preempted VM is lost; got '$workdir'" ;;
  status | delete) ;;
  "") die "an action is needed: train, status or delete; see --help" ;;
  *) die "unknown action $action; choose train, status or delete" ;;
esac
[[ $name =~ ^[a-z][-a-z0-9]*$ ]] || die "--name=NAME is needed: small letters, digits, '-'; got '$name'"
[[ -n $zone ]] || die "--zone=ZONE is needed, e.g. --zone=us-west4-a"
[[ $max_restarts =~ ^[0-9]+$ ]] || die "--max-restarts=$max_restarts is no number"
[[ $poll =~ ^[0-9.]+$ ]] || die "--poll=$poll is no number of seconds"
if [[ -z $runtime ]]; then # https://cloud.google.com/tpu/docs/runtimes
  case $accelerator in
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
    *) die "--accelerator=$accelerator: no known TPU software version; add --runtime=VERSION" ;;
  esac
fi
$dry_run || command -v gcloud > /dev/null || die "gcloud is not on PATH; install the Google Cloud CLI"

queued=(gcloud compute tpus queued-resources)
where=("--zone=$zone" --quiet)
[[ -z $project ]] || where+=("--project=$project")

# Empty when there is none. A list, not `describe`: its failure always means trouble.
state() {
  run "${queued[@]}" list "${where[@]}" "--filter=name~/queuedResources/$name\$" '--format=value(state.state)'
}

# Tries a query up to ten times: a job that runs for days outlives a short failure of the network.
insist() {
  local try
  for try in 1 2 3 4 5 6 7 8 9 10; do
    "$@" && return 0 # in a trap a bare `return` hands on the status from before it
    say "the state of $name is not to be had (try $try of 10)"
    sleep "$poll"
  done
  return 1
}

vm() { # ACTION
  local options=("--name=$name" "--zone=$zone" "--accelerator=$accelerator" "--runtime=$runtime")
  options+=("--config=$config" "--workdir=$workdir" "--data=$data" "--project=$project" "--poll=$poll")
  ! $dry_run || options+=(--dry-run)
  "$here/tpu_vm.sh" "$1" "${options[@]}" -- ${overrides[@]+"${overrides[@]}"}
}

# 0: the VM can be used; 1: it is lost; 2: not to be had. `now` is the state of the queued resource.
alive() {
  local vm_state
  now=$(insist state) && vm_state=$(insist vm status) || return 2
  [[ $now == ACTIVE && $vm_state == READY ]]
}

delete() { # --force: the VM goes with it
  if $dry_run; then state && run "${queued[@]}" delete "$name" "${where[@]}" --force && return; fi
  local found
  found=$(insist state) || return 1
  [[ -n $found ]] || { say "there is no queued resource $name in $zone (any more)"; return 0; }
  run "${queued[@]}" delete "$name" "${where[@]}" --force || { found=$(insist state) && [[ -z $found ]]; }
}

# shellcheck disable=SC2329
clean_up() { # run by the trap
  local code=$?
  set +e
  trap - EXIT
  trap '' INT TERM HUP # a second Ctrl-C must not leave a VM that costs money
  if $ours && ! $keep; then
    $dry_run || say "deleting queued resource $name"
    delete || say "COULD NOT DELETE $name, it costs money: $(quote "${queued[@]}" delete "$name" "${where[@]}" --force)"
  fi
  exit "$code"
}
ours=false # true once this call answers for the deletion
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

submit() {
  local flags=("--node-id=$name" "--accelerator-type=$accelerator" "--runtime-version=$runtime") try
  ! $spot || flags+=(--spot)
  for try in 1 2 3; do
    run "${queued[@]}" create "$name" "${where[@]}" "${flags[@]}" ${create_flags[@]+"${create_flags[@]}"} && return
    # It may have been created all the same, when the answer was lost.
    now=$(insist state) || return
    [[ -z $now ]] || return 0
    say "creating queued resource $name failed (try $try of 3)"
    sleep "$poll"
  done
  return 1
}

# One life of the VM. 0: trained; 75: lost or preempted, worth another life; else: it failed.
life() {
  local now code=0 there=0
  now=$(insist state) || return 2
  ours=true
  if [[ $now == FAILED || $now == SUSPEND* || $now == DELETING ]]; then
    delete || return 2
    now=""
  fi
  [[ -n $now ]] || submit || { say "creating queued resource $name failed; see the message of gcloud above"; return 2; }
  until [[ $now == ACTIVE ]]; do
    now=$(insist state) || return 2
    case $now in
      FAILED) say "queued resource $name FAILED: no quota, or not to be had in $zone" && return 2 ;;
      SUSPEND* | DELETING | "") say "queued resource $name was lost while waiting" && return 75 ;;
      ACTIVE) ;;
      *) say "queued resource $name: $now" && sleep "$poll" ;;
    esac
  done
  vm setup && vm run && return || code=$?
  # The log breaks off some seconds before the state tells of a preemption.
  sleep "$poll"
  alive || there=$?
  ((there != 2)) || return 2
  ((there == 0)) || { say "queued resource $name was preempted ($now)"; return 75; }
  # 255: ssh was lost, but the VM is there and the training may be too. Attach to it again.
  ((code != 255)) || code=75
  return "$code"
}

case $action in
  status) state ;;
  delete) delete || die "deleting queued resource $name failed; see the message of gcloud above" ;;
  train)
    if $dry_run; then
      ours=true
      state && submit && state && vm setup && vm run
      exit
    fi
    for ((restart = 0; ; restart++)); do
      code=0
      life || code=$?
      ((code == 75 && restart < max_restarts)) || break
      say "restart $((restart + 1)) of at most $max_restarts"
      # Still READY: a checkpoint on a signal, or a lost ssh. Then it is only run again.
      there=0
      alive || there=$?
      ((there != 2)) || die "the state of $name is not to be had"
      ((there == 0)) || delete || die "deleting queued resource $name failed"
    done
    exit "$code"
    ;;
esac
