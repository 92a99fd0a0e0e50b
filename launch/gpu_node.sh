#!/usr/bin/env bash
# Trains on one machine with NVIDIA GPUs: one process that uses all of them; here or over ssh.
#
# usage: launch/gpu_node.sh --workdir=DIR [OPTION ...] [-- --config.KEY=VALUE ...]
#
#   --workdir=DIR      where the run lives, on the machine that trains, or gs://BUCKET/PATH
#   --config=RECIPE      recipe, a file or e.g. cls:rsna (default: configs/cls.py:rsna)
#   --data=DIR         raw images, on the machine that trains (default: none)
#   --venv=DIR         virtual environment, made where it is missing (default: .venv)
#   --extra=EXTRA      what to install: cuda (default), or none to train on the CPU
#   --no-install       use the virtual environment as it is
#   --host=USER@HOST   copy this checkout there with ssh, train there, copy the workdir back. The
#                      training ends with the connection: start it in tmux, or again to go on
#   --remote-dir=DIR   folder on HOST for the checkout (default: boneage_jax, in the home folder)
#   --dry-run          print the commands in their order and run none
#   --help             print this
#
# Exit code: that of the training (75: stopped by a signal after a checkpoint, run it again).

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

die() { echo "gpu_node.sh: $*" >&2; exit 2; }

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

workdir="" config=configs/cls.py:rsna data="" venv=.venv extra=cuda host="" remote_dir=boneage_jax
install=true dry_run=false overrides=()
while (($#)); do
  case $1 in
    --help | -h) sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 0 ;;
    --workdir=* | --config=* | --data=* | --venv=* | --extra=* | --host=*)
      key=${1%%=*} && printf -v "${key#--}" %s "${1#*=}" ;;
    --remote-dir=*) remote_dir=${1#*=} ;;
    --no-install) install=false ;;
    --dry-run) dry_run=true ;;
    --) shift && overrides=("$@") && break ;;
    *) die "unknown argument $1; see --help (options are written --key=value)" ;;
  esac
  shift
done
[[ -n $workdir ]] || die "--workdir=DIR is needed, e.g. --workdir=runs/rsna"
[[ $extra == cuda || $extra == none ]] || die "--extra=$extra is unknown; choose cuda or none"
[[ ${config%%:*} != *.py || -f $root/${config%%:*} ]] || die "--config=$config: there is no ${config%%:*} in this checkout"

if [[ -n $host ]]; then
  $dry_run || command -v ssh > /dev/null || die "ssh is not on PATH"
  [[ $host != -* ]] || die "--host=$host is no host"
  pack=(tar -cz -C "$root" --exclude=__pycache__ pyproject.toml README.md LICENSE boneage_jax configs tfds_rsna launch)
  unpack=(ssh "$host" "mkdir -p $(quote "$remote_dir") && tar -xz -C $(quote "$remote_dir")")
  there=(bash launch/gpu_node.sh "--workdir=$workdir" "--config=$config" "--data=$data" "--venv=$venv")
  there+=("--extra=$extra")
  $install || there+=(--no-install)
  there+=(-- ${overrides[@]+"${overrides[@]}"})
  # -tt: with a terminal, Ctrl-C and a lost connection end the training too, not only this script.
  train=(ssh -tt "$host" "cd $(quote "$remote_dir") && $(quote "${there[@]}")")
  if $dry_run; then
    echo "$(quote "${pack[@]}") | $(quote "${unpack[@]}")"
  else
    echo "+ $(quote "${pack[@]}") | $(quote "${unpack[@]}")" >&2
    "${pack[@]}" | "${unpack[@]}" || die "copying the code to $host failed"
  fi
  code=0
  run "${train[@]}" || code=$?
  if [[ $workdir != gs://* ]]; then
    from=$workdir
    [[ $from == /* ]] || from=$remote_dir/$from
    run mkdir -p "$(dirname "$workdir")"
    run scp -r -q "$host:$from" "$(dirname "$workdir")" || { echo "gpu_node.sh: the results could not be copied back" >&2 && code=$((code ? code : 1)); }
  fi
  exit "$code"
fi

if ! $dry_run && [[ $extra == cuda ]]; then
  command -v nvidia-smi > /dev/null || die "nvidia-smi is not on PATH: no NVIDIA driver here; --extra=none trains on the CPU"
fi
run cd "$root"
if $install; then
  if $dry_run || [[ ! -x $venv/bin/python ]]; then
    $dry_run || python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "python3 of version 3.11 or newer is needed"
    run python3 -m venv "$venv" || die "no virtual environment in $venv; on Debian and Ubuntu: apt-get install python3-venv"
  fi
  extras=bucket # for workdirs at gs://
  [[ $extra == none ]] || extras=$extra,bucket
  run "$venv/bin/python" -m pip install --quiet -e ".[$extras]" || die "installing into $venv failed; see the message of pip above"
fi
$dry_run || [[ -x $venv/bin/python ]] || die "--venv=$venv has no bin/python; leave out --no-install"

# In a shell of SLURM, Open MPI or Kubernetes JAX would take this process for one of many, and under
# SLURM give it the first GPU only.
command=(env -u SLURM_JOB_ID -u OMPI_MCA_orte_hnp_uri -u KUBERNETES_SERVICE_HOST)
command+=("$venv/bin/python" -m boneage_jax.main "--config=$config" "--workdir=$workdir")
[[ -z $data ]] || command+=("--config.data.raw_dir=$data")
run "${command[@]}" ${overrides[@]+"${overrides[@]}"}
