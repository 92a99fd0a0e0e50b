#!/usr/bin/env bash
# Trains on one Cloud TPU VM (a single host or a whole slice) with gcloud.
#
# usage: launch/tpu_vm.sh ACTION --name=NAME --zone=ZONE [OPTION ...] [-- --config.KEY=VALUE ...]
#
# ACTION
#   train    create, setup, run and fetch; then the VM is deleted, also after a failure or Ctrl-C
#   create   only create the VM
#   setup    copy this checkout to every worker and install it there; copy gs:// data to their disks
#   run      start the training on every worker and stream the log of worker 0; started again while
#            it runs, it only streams. Exit code: 1 or 2 where any worker ended so; else 75 (run it
#            again, it goes on from its last checkpoint) where one was preempted, was killed or crashed;
#            else the highest. 255: the connection was lost, the training may go on; run it again
#   fetch    copy workdir and log to OUT
#   status   print the state of the VM (nothing where there is none)
#   delete   delete the VM; succeeds when it is already gone
#
# OPTIONS
#   --accelerator=TYPE  e.g. v5litepod-8 (default), v6e-8, v5p-8, v4-8
#   --runtime=VERSION   TPU software version (default: the one for TYPE)
#   --config=RECIPE       recipe, a file or e.g. cls:rsna (default: configs/cls.py:rsna)
#   --workdir=DIR       gs://BUCKET/PATH, or a path on the VM (default: runs/NAME); where TYPE has
#                       several hosts: gs://BUCKET/PATH, or the absolute path of a folder they share
#   --data=DIR          raw images: gs://BUCKET/PATH, or a path on the workers (default: none)
#   --out=DIR           where fetch puts the results (default: runs)
#   --project=ID        Google Cloud project (default: that of gcloud)
#   --spot              cheaper, can be preempted; tpu_queued.sh restarts such a job by itself
#   --create-flag=FLAG  one more flag of `gcloud compute tpus tpu-vm create`; may be repeated
#   --poll=SECONDS      between two tries after a failure (default: 30)
#   --keep              train: never delete the VM
#   --dry-run           print the commands in their order and run none
#   --help              print this

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

die() { echo "tpu_vm.sh: $*" >&2; exit 2; }
say() { echo "tpu_vm.sh: $*" >&2 || true; }

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
workdir="" data="" out=runs project="" poll=30 spot=false keep=false dry_run=false
create_flags=() overrides=()
while (($#)); do
  case $1 in
    --help | -h) sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 0 ;;
    --name=* | --zone=* | --accelerator=* | --runtime=* | --config=* | --workdir=* | --data=* | \
      --out=* | --project=* | --poll=*) key=${1%%=*} && printf -v "${key#--}" %s "${1#*=}" ;;
    --create-flag=*) create_flags+=("${1#*=}") ;;
    --spot) spot=true ;;
    --keep) keep=true ;;
    --dry-run) dry_run=true ;;
    --) shift && overrides=("$@") && break ;;
    -*) die "unknown option $1; see --help (options are written --key=value)" ;;
    *) [[ -z $action ]] || die "one action only, got $action and $1" && action=$1 ;;
  esac
  shift
done
case ${action:-none} in
  train | create | setup | run | fetch | status | delete) ;;
  *) die "an action is needed: train, create, setup, run, fetch, status or delete; got ${action:-none}" ;;
esac
[[ $name =~ ^[a-z][-a-z0-9]*$ ]] || die "--name=NAME is needed: small letters, digits, '-'; got '$name'"
[[ -n $zone ]] || die "--zone=ZONE is needed, e.g. --zone=us-west4-a"
[[ $poll =~ ^[0-9.]+$ ]] || die "--poll=$poll is no number of seconds"
[[ ${config%%:*} != *.py || -f $root/${config%%:*} ]] || die "--config=$config: there is no ${config%%:*} in this checkout"
if [[ -z $runtime ]]; then # https://cloud.google.com/tpu/docs/runtimes
  case $accelerator in
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
    *) die "--accelerator=$accelerator: no known TPU software version; add --runtime=VERSION" ;;
  esac
fi
workdir=${workdir:-runs/$name}
# v5e and v6e count chips, 8 on one host; the others cores, 8 on the 4 chips of one host.
size=${accelerator##*-}
if [[ $action == train || $action == run ]] && [[ $size =~ ^[0-9]+$ && $workdir != gs://* && $workdir != /* ]]; then
  ((10#$size <= 8)) || die "--workdir=$workdir is on the disk of one host, but $accelerator has several; give --workdir=gs://BUCKET/PATH, or the absolute path of a folder that all of them share"
fi
$dry_run || command -v gcloud > /dev/null || die "gcloud is not on PATH; install the Google Cloud CLI"

vm=(gcloud compute tpus tpu-vm)
where=("--zone=$zone" --quiet)
[[ -z $project ]] || where+=("--project=$project")

# Empty when there is no such VM. A list, not `describe`: its failure always means trouble.
state() {
  run "${vm[@]}" list "${where[@]}" "--filter=name~/nodes/$name\$" '--format=value(state)'
}

# One failure of the network must not decide over a VM that is paid for.
known_state() {
  local try
  for try in 1 2 3 4 5 6 7 8 9 10; do
    state && return 0 # in a trap a bare `return` hands on the status from before it
    say "the state of $name is not to be had (try $try of 10)"
    sleep "$poll"
  done
  return 1
}

# Tries a command up to three times while the VM is there; returns its last exit code.
insist() {
  local try code
  for try in 1 2 3; do
    code=0
    "$@" || code=$?
    ((code && try < 3)) || break
    say "exit code $code (try $try of 3)"
    sleep "$poll"
    [[ $(known_state) == READY ]] || break
  done
  return "$code"
}

delete() {
  if $dry_run; then state && run "${vm[@]}" delete "$name" "${where[@]}" && return; fi
  local found
  found=$(known_state) || return 1
  [[ -n $found ]] || { say "there is no TPU VM $name in $zone (any more)"; return 0; }
  # It may vanish in between: what counts is whether it is still there.
  run "${vm[@]}" delete "$name" "${where[@]}" || { found=$(known_state) && [[ -z $found ]]; }
}

ours=false # true while this call answers for the deletion of the VM
# shellcheck disable=SC2329
clean_up() { # run by the trap
  local code=$?
  set +e
  trap - EXIT
  trap '' INT TERM HUP # a second Ctrl-C must not leave a VM that costs money
  if $ours && ! $keep; then
    $dry_run || say "deleting TPU VM $name"
    delete || say "COULD NOT DELETE $name, it costs money: $(quote "${vm[@]}" delete "$name" "${where[@]}")"
  fi
  exit "$code"
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

create() {
  if $dry_run; then
    state
  else
    local found # asked once: nothing is lost yet
    found=$(state) || die "cannot list the TPU VMs of $zone; see the message of gcloud above"
    [[ -z $found ]] || die "TPU VM $name exists already ($found); run, delete it, or choose another --name"
  fi
  ours=true
  local flags=("--accelerator-type=$accelerator" "--version=$runtime")
  ! $spot || flags+=(--spot)
  run "${vm[@]}" create "$name" "${where[@]}" "${flags[@]}" ${create_flags[@]+"${create_flags[@]}"} \
    || die "creating TPU VM $name failed; see the message of gcloud above"
}

on_workers() { # WORKERS COMMAND
  run "${vm[@]}" ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"
}

setup() {
  local archive=${TMPDIR:-/tmp}/boneage_jax-$name-$UID.tar.gz code=0
  run tar -czf "$archive" -C "$root" --exclude=__pycache__ \
    pyproject.toml README.md LICENSE boneage_jax configs tfds_rsna || die "packing the code into $archive failed"
  insist run "${vm[@]}" scp "$archive" "$name:boneage_jax.tar.gz" "${where[@]}" --worker=all || code=$?
  run rm -f "$archive"
  if ((code)); then
    say "copying the code to $name failed; several workers need: ssh-add ~/.ssh/google_compute_engine"
    return "$code"
  fi
  # The images of v5e and v6e bring Python 3.10, this library needs 3.11: uv brings its own.
  local install="mkdir -p ~/boneage && tar -xzf ~/boneage_jax.tar.gz -C ~/boneage && cd ~/boneage"
  install+=" && { test -x ~/.local/bin/uv || curl -LsSf https://astral.sh/uv/install.sh | sh; }"
  install+=" && ~/.local/bin/uv venv --quiet --allow-existing --python=3.12 venv"
  install+=" && ~/.local/bin/uv pip install --quiet --python=venv/bin/python -e '.[tpu,bucket]'"
  if [[ $data == gs://* ]]; then # each worker reads its share of the images from its own disk
    install+=" && mkdir -p raw && gcloud storage rsync --recursive $(quote "$data") raw"
  fi
  insist on_workers all "$install" || { code=$? && say "setting up the workers of $name failed; see the output above" && return "$code"; }
}

# The exit code of the job, from those of its workers. 126, 127: one worker has no such Python.
verdict() {
  local code codes=" $* "
  for code in 2 1 127 126; do
    [[ $codes != *" $code "* ]] || { echo "$code" && return; }
  done
  for code in 75 134 135 137 139 143; do # stopped, aborted, killed, crashed, told to end too early
    [[ $codes != *" $code "* ]] || { echo 75 && return; }
  done
  printf '%s\n' "$@" | sort -n | tail -n 1
}

train() {
  local command=(venv/bin/python -m boneage_jax.main "--config=$config" "--workdir=$workdir")
  if [[ $data == gs://* ]]; then
    command+=(--config.data.raw_dir=raw)
  elif [[ -n $data ]]; then
    command+=("--config.data.raw_dir=$data")
  fi
  command+=(${overrides[@]+"${overrides[@]}"})
  # gcloud repeats a command up to ten times when ssh drops. So the training is detached from ssh
  # and both halves may be repeated: start what does not run, follow until its exit code is there.
  local job start follow ends code=0
  # The exit code is written over another one in place: a full disk has no room for a new file.
  job="trap : TERM; $(quote "${command[@]}"); printf %-3s \$? 1<> .launch/code; mv .launch/code .launch/exit"
  start="cd ~/boneage && mkdir -p .launch && if test -e .launch/pid && ! test -e .launch/exit"
  start+=" && kill -0 \$(cat .launch/pid) 2> /dev/null;"
  start+=" then echo already running; else rm -f .launch/exit; echo 137 > .launch/code;"
  start+=" nohup setsid bash -c $(quote "$job") > .launch/log 2>&1 < /dev/null & echo \$! > .launch/pid; fi"
  # The exit code ends it, not only the process: where nothing reaps it, kill -0 finds it for ever.
  # It succeeds once the training ended, in whatever way: a failure is one of the connection.
  follow="cd ~/boneage; while kill -0 \$(cat .launch/pid) && ! test -e .launch/exit; do sleep 0.5; done"
  follow+=" < /dev/null > /dev/null 2>&1 &"
  follow+=" tail -n +1 -s 0.5 --pid=\$! -f .launch/log; test -e .launch/exit || ! kill -0 \$(cat .launch/pid)"
  # The workers end within two minutes of each other. One that does not hangs, and would keep the next
  # start from meeting all of them. No exit code: it was killed together with the shell that notes it.
  ends="cd ~/boneage; for i in \$(seq 300); do kill -0 \$(cat .launch/pid) && ! test -e .launch/exit && sleep 1 || break; done 2> /dev/null;"
  ends+=" test -e .launch/exit || kill -KILL -- -\$(cat .launch/pid) 2> /dev/null;"
  ends+=" echo worker ended with \$(cat .launch/exit 2> /dev/null || echo 137)"
  insist on_workers all "$start" || { code=$? && say "starting the training on $name failed; see the output above" && return "$code"; }
  insist on_workers 0 "$follow" || { say "the connection to $name was lost; the training may go on, run it again to attach to it" && return 255; }
  if $dry_run; then on_workers all "$ends" && return; fi
  local output line codes=()
  output=$(insist on_workers all "$ends") || codes=(137) # a worker that is not there any more
  while read -r line; do
    [[ ! $line =~ "worker ended with "([0-9]+) ]] || codes+=("${BASH_REMATCH[1]}")
  done <<< "$output"
  code=$(verdict "${codes[@]:-137}")
  if ((code)); then # the cause may stand in the log of another worker
    say "training on $name ended with exit code $code, that of the workers: ${codes[*]:-none}; the last lines of every worker:"
    on_workers all 'tail -n 20 ~/boneage/.launch/log' || true
  fi
  ((code != 75)) || say "it can go on from its last checkpoint: run it again"
  return "$code"
}

# shellcheck disable=SC2329
fetch() { # run by insist
  local to="$out/${workdir##*/}" from=$workdir
  run mkdir -p "$to" || return
  if [[ $workdir == gs://* ]]; then
    run gcloud storage rsync --recursive "$workdir" "$to" || return
  else
    [[ $from == /* ]] || from=boneage/$from
    run "${vm[@]}" scp --recurse "$name:$from" "$out" "${where[@]}" --worker=0 || return
  fi
  run "${vm[@]}" scp "$name:boneage/.launch/log" "$to/train.log" "${where[@]}" --worker=0
}

code=0
case $action in
  create) create && ours=false ;;
  setup) setup || code=$? ;;
  run) train || code=$? ;;
  fetch) insist fetch || code=$? ;;
  status) state ;;
  delete) delete || die "deleting TPU VM $name failed; see the message of gcloud above" ;;
  train)
    create
    setup || exit
    train || code=$?
    insist fetch || say "the results could not be fetched"
    ;;
esac
exit "$code"
