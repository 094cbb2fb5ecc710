#!/usr/bin/env bash
# What a machine with a CUDA device is rented for, a step at a time: scripts/gpu.sh STEP ...; without arguments the steps
# are listed. `all` makes those that remain, in order.
#
# A step that is cut off, by its time limit or by the machine's end, goes on where it stopped when it is asked for again;
# one that is done is not repeated until the code or the device is another. Nothing needs a network once the package is
# installed.
#
#   CORPUS=PATH          the text that `ladder` trains on, a file or a folder; without it there is no ladder
#   STEP_SECONDS=540     the longest that a step may take
#   MODELS, SIZES        of the ladder: "ltc transformer mamba rwkv" and "1m 4m 16m"
#   OVERRIDES            of its runs, as python run.py takes them
#   RECORDS=runs         where its runs are recorded
#   LIQUIDBENCH_LONG=1   all of the tests, the long ones too
#   PYTHON               the interpreter: .venv/bin/python where there is one, else python
#   DRY=1                prints the commands of a step and runs none
set -euo pipefail
cd "$(dirname "$0")/.."

STEPS="check tests kernels models newton ladder"
STEP_SECONDS=${STEP_SECONDS:-540}
MODELS=${MODELS:-ltc transformer mamba rwkv}
SIZES=${SIZES:-1m 4m 16m}
OVERRIDES=${OVERRIDES:-trainer.tokens=null trainer.tokens_per_parameter=20 trainer.batch_size=16 trainer.length=1024 trainer.precision=bf16}
RECORDS=${RECORDS:-runs}
CORPUS=${CORPUS:-}
DRY=${DRY:-}
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1 WANDB_MODE=offline

fail() { # what, expected, remedy
  printf 'error: %s\nexpected: %s\nremedy: %s\n' "$@" >&2
  exit 2
}

[[ $STEP_SECONDS =~ ^[1-9][0-9]*$ ]] || fail "STEP_SECONDS=$STEP_SECONDS cannot be used." "a number of seconds." "set it to 540, for one."

told() {
  case $1 in
    check) echo "the device and the versions, without which no other step begins" ;;
    tests) echo "the tests that need a CUDA device or Triton, a file at a time" ;;
    kernels | models | newton) echo "python -m bench $1 --device cuda, into results/bench/DEVICE" ;;
    ladder) echo "$MODELS at $SIZES on CORPUS, recorded in $RECORDS" ;;
  esac
}

if [ $# -eq 0 ]; then
  for step in $STEPS; do printf '%-8s %s\n' "$step" "$(told "$step")"; done
  exit 0
fi

# The name of the device as a folder is named, the commit, and whether the versions will do.
facts() {
  "$PYTHON" - <<'PY'
import re, sys
from importlib.metadata import PackageNotFoundError, version

import torch


def of(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return "0"


number = lambda text: tuple(map(int, re.findall(r"\d+", text)[:2]))
name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
print(re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "none")
print(f"{name or 'no CUDA device'}, torch {torch.__version__}, Triton {of('triton')}, Python {sys.version.split()[0]}")
print("yes" if number(torch.__version__) >= (2, 11) and number(of("triton")) >= (3, 6) else "no")
PY
}

if [ -n "$DRY" ]; then
  DEVICE=DEVICE COMMIT=COMMIT
else
  { read -r DEVICE; read -r FACTS; read -r RECENT; } < <(facts) || fail "$PYTHON has no torch." "an installed package." "make run once, or set PYTHON."
  [ "$DEVICE" != none ] || fail "There is no CUDA device here: $FACTS." "a machine with one, and torch built for CUDA." "rent one, or see the commands with DRY=1."
  [ "$RECENT" = yes ] || fail "The versions are too old: $FACTS." "torch 2.11 and Triton 3.6, or newer." "pip install -c constraints.txt torch triton."
  # changes that are not committed are other code, too
  COMMIT=$(git rev-parse --short=12 HEAD 2>/dev/null || echo none)$(git diff HEAD 2>/dev/null | sha256sum | cut -c1-8)
fi
DONE=$RECORDS/gpu/$DEVICE/$COMMIT

# Runs one part of a step, NAME COMMAND ..., in what is left of the step's time, unless it is done.
part() {
  local name=$1 left status=0
  shift
  left=$((STEP_SECONDS - SECONDS + STARTED))
  if [ -n "$DRY" ]; then
    printf '%q ' "$@"
    echo
  elif [ -e "$DONE/$name" ]; then
    echo "$name: done"
  elif [ "$left" -le 0 ]; then
    LATE="$LATE $name"
  else
    # SIGTERM lets a run write its checkpoint; the bench has kept each measurement as it was made
    timeout --signal=TERM --kill-after=60 "$left" "$@" || status=$?
    if [ "$status" -eq 0 ]; then
      mkdir -p "$DONE" && touch "$DONE/$name"
    elif [ $((SECONDS - STARTED)) -ge "$STEP_SECONDS" ]; then
      LATE="$LATE $name"
    else
      FAILED="$FAILED $name"
    fi
  fi
}

bench() { part "$1" "$PYTHON" -m bench "$1" --device cuda --out "results/bench/$DEVICE"; }

step() {
  case $1 in
    check) [ -n "$DRY" ] && echo "$PYTHON (device, torch 2.11 or newer, Triton 3.6 or newer)" || echo "$FACTS" ;;
    tests)
      local file
      for file in $({ ls tests/test_*triton*.py; grep -lE 'needs a CUDA device|^import conformance$|solvers_triton' tests/test_*.py; } | sort -u); do
        part "$(basename "$file")" "$PYTHON" -m pytest -q -n0 -k "triton or cuda or gpu or graph" "$file"
      done
      ;;
    kernels | models | newton) bench "$1" ;;
    ladder)
      [ -n "$CORPUS" ] || fail "CORPUS was not given." "a text: a file, or a folder of files." "CORPUS=PATH scripts/gpu.sh ladder"
      [ -e "$CORPUS" ] || [ -n "$DRY" ] || fail "CORPUS=$CORPUS is not there." "a file or a folder." "correct the path."
      local size model words
      read -ra words <<<"$OVERRIDES"
      for size in $SIZES; do
        for model in $MODELS; do
          part "ladder-$model-$size" "$PYTHON" run.py "model=$model" "size=$size" task=text "task.path=$CORPUS" \
            "records=$RECORDS" "trainer.device=cuda" "${words[@]}"
        done
      done
      ;;
    *) fail "There is no step $1." "$STEPS, or all." "scripts/gpu.sh lists them." ;;
  esac
}

LATE="" FAILED=""
[ "$*" != all ] || set -- check tests kernels models newton ${CORPUS:+ladder}
for name in "$@"; do
  STARTED=$SECONDS
  [ -n "$DRY" ] || echo "== $name"
  step "$name"
done
[ -z "$LATE" ] || echo "out of time:$LATE; the same command goes on"
[ -z "$FAILED" ] || echo "failed:$FAILED"
[ -z "$LATE$FAILED" ]
