#!/usr/bin/env bash
# Trains on a GKE cluster (TPU slices or GPU nodes) with xpk, from an image made with launch/Dockerfile.
#
# usage: launch/xpk.sh ACTION --cluster=CLUSTER --workload=NAME [OPTION ...] [-- --config.KEY=VALUE ...]
#
# ACTION
#   build    build and push the image; needs docker and a login to the registry
#   run      submit the workload; GKE starts it again after a preemption (exit code 75)
#   wait     wait for its end; exit code 0 only if it succeeded
#   list     list the workloads of the cluster
#   delete   delete the workload; succeeds when it is already gone
#
# OPTIONS
#   --image=IMAGE        e.g. us-docker.pkg.dev/PROJECT/REPOSITORY/boneage:1 (build, run)
#   --base-image=IMAGE   run: instead of --image; xpk adds this checkout to IMAGE, whose dependencies
#                        must fit: quicker than a build after a change of the code alone
#   --tpu-type=TYPE      e.g. v5litepod-16, v6e-8
#   --num-slices=N       TPU slices (default: 1)
#   --device-type=TYPE   GPU nodes instead, e.g. h100-80gb-8, a100-40gb-8
#   --num-nodes=N        GPU nodes (default: 1)
#   --config=RECIPE        recipe, a file or e.g. cls:rsna (default: configs/cls.py:rsna)
#   --workdir=DIR        gs://BUCKET/PATH, or the absolute path of a folder in a mounted --storage
#   --data=DIR           raw images, likewise (default: none)
#   --storage=NAME       mount a storage made with `xpk storage attach`; may be repeated
#   --project=ID --zone=ZONE   of the cluster (default: those of gcloud)
#   --max-restarts=N     default: 50
#   --xpk-flag=FLAG      one more flag of `xpk workload create`, e.g. --xpk-flag=--spot; may be repeated
#   --dry-run            print the commands in their order and run none
#   --help               print this

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

die() { echo "xpk.sh: $*" >&2; exit 2; }

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
  if $dry_run; then quote "$@"; else echo "+ $(quote "$@")" >&2 && "$@"; fi
}

action="" cluster="" workload="" image="" config=configs/cls.py:rsna workdir="" data="" project="" zone=""
base_image="" tpu_type="" slices=1 device_type="" nodes=1 max_restarts=50 dry_run=false
flags=() overrides=()
while (($#)); do
  case $1 in
    --help | -h) sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 0 ;;
    --cluster=* | --workload=* | --image=* | --config=* | --workdir=* | --data=* | --project=* | --zone=*)
      key=${1%%=*} && printf -v "${key#--}" %s "${1#*=}" ;;
    --base-image=*) base_image=${1#*=} ;;
    --tpu-type=*) tpu_type=${1#*=} ;;
    --num-slices=*) slices=${1#*=} ;;
    --device-type=*) device_type=${1#*=} ;;
    --num-nodes=*) nodes=${1#*=} ;;
    --storage=*) flags+=("$1") ;;
    --max-restarts=*) max_restarts=${1#*=} ;;
    --xpk-flag=*) flags+=("${1#*=}") ;;
    --dry-run) dry_run=true ;;
    --) shift && overrides=("$@") && break ;;
    -*) die "unknown option $1; see --help (options are written --key=value)" ;;
    *) [[ -z $action ]] || die "one action only, got $action and $1" && action=$1 ;;
  esac
  shift
done
case $action in
  build | run | wait | list | delete) ;;
  "") die "an action is needed: build, run, wait, list or delete; see --help" ;;
  *) die "unknown action $action; choose build, run, wait, list or delete" ;;
esac
[[ $action == build || -n $cluster ]] || die "--cluster=CLUSTER is needed"
if [[ $action == run || $action == wait || $action == delete ]]; then # without it xpk deletes ALL workloads
  [[ $workload =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] \
    || die "--workload=NAME is needed: at most 40 small letters, digits, '-'; got '$workload'"
fi
need() { $dry_run || command -v "$1" > /dev/null || die "$1 is not on PATH; $2"; }
where=()
[[ -z $project ]] || where+=("--project=$project")
[[ -z $zone ]] || where+=("--zone=$zone")
on_cluster() { # SUBCOMMAND FLAG ...
  run xpk workload "$1" "--cluster=$cluster" ${where[@]+"${where[@]}"} "${@:2}"
}

build() {
  [[ -n $image ]] || die "--image=IMAGE is needed"
  need docker "install Docker, or build launch/Dockerfile elsewhere"
  local extra=tpu
  [[ -z $device_type ]] || extra=cuda
  run docker build --platform=linux/amd64 -f "$root/launch/Dockerfile" --build-arg "EXTRA=$extra" -t "$image" "$root"
  run docker push "$image"
}

submit() {
  [[ -n $workdir ]] || die "--workdir=DIR is needed: gs://BUCKET/PATH, or a folder of a --storage"
  [[ ${config%%:*} != *.py || -f $root/${config%%:*} ]] || die "--config=$config: there is no ${config%%:*} in this checkout"
  local create=("--workload=$workload") command image_flags
  if [[ -n $tpu_type && -z $device_type ]]; then
    create+=("--tpu-type=$tpu_type" "--num-slices=$slices")
  elif [[ -n $device_type && -z $tpu_type ]]; then
    create+=("--device-type=$device_type" "--num-nodes=$nodes")
  else
    die "either --tpu-type=TYPE or --device-type=TYPE is needed"
  fi
  if [[ -n $image && -z $base_image ]]; then
    image_flags=("--docker-image=$image")
  elif [[ -n $base_image && -z $image ]]; then
    image_flags=("--base-docker-image=$base_image" "--script-dir=$root")
  else
    die "either --image=IMAGE or --base-image=IMAGE is needed"
  fi
  # Each pod has a disk of its own, which is lost with it.
  [[ $workdir == gs://* || $workdir == /* ]] \
    || die "--workdir=$workdir is on the disk of one pod; give --workdir=gs://BUCKET/PATH, or the absolute path of a folder in a --storage"
  command=(python -m boneage_jax.main "--config=$config" "--workdir=$workdir")
  [[ -z $data ]] || command+=("--config.data.raw_dir=$data")
  command+=(${overrides[@]+"${overrides[@]}"})
  # xpk sends SIGTERM to the shell it starts the command in; with exec that is the training itself.
  local line
  line="exec $(quote "${command[@]}")"
  # xpk gives GPU pods the coordinator without its port, and jax.distributed wants HOST:PORT.
  # shellcheck disable=SC2016
  [[ -z $device_type ]] || line='export JAX_COORDINATOR_ADDRESS=$JAX_COORDINATOR_ADDRESS:$JAX_COORDINATOR_PORT && '$line
  case $line in # xpk writes the command into YAML between double quotes
    *[\"\\]*) die "xpk cannot pass a \" or \\ or ' in an override: $line" ;;
  esac
  on_cluster create "${create[@]}" "${image_flags[@]}" "--command=$line" "--max-restarts=$max_restarts" \
    --restart-on-exit-codes=75 --termination-grace-period-seconds=120 ${flags[@]+"${flags[@]}"} \
    || die "submitting $workload failed; what is left of it goes with: launch/xpk.sh delete --cluster=$cluster --workload=$workload"
}

delete() {
  if $dry_run; then on_cluster delete "--workload=$workload" --force && return; fi
  local output code=0
  output=$(on_cluster delete "--workload=$workload" --force 2>&1) || code=$?
  printf '%s\n' "$output" >&2
  # kubectl's word for a JobSet that does not exist.
  ((code == 0)) || [[ $output == *"(NotFound)"*"\"$workload\""* ]] || die "deleting $workload failed; see above"
}

[[ $action == build ]] || need xpk "pip install xpk"
case $action in
  build) build ;;
  run) submit ;;
  wait) on_cluster list "--wait-for-job-completion=$workload" ;;
  list) on_cluster list ;;
  delete) delete ;;
esac
