#!/usr/bin/env bash
# On a machine with a GPU, in the project's root: what pack.sh has made is unpacked, and scripts.gpu.check is run.
#
#     bash .w/go.sh probe|first|speed|tuned|xl|rest [options of scripts.gpu.check]
#
# probe: what is there. first: does it run, which kernels, is it right, what costs what. speed: beside eager and
# torch.compile, then the tests. tuned: beside max-autotune. xl: the large shape. rest: what fits of what is not done.
# Each is one command of less than ten minutes; all of them write one report, into $OUT.
# The parts of pack.sh lie in $PARTS (or .w), and what is unpacked goes to $SITE.
set -u
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-/tmp/inductor}
SITE=${SITE:-/tmp/site} PARTS=${PARTS:-/tmp/o} WORK=${WORK:-/tmp/gpu} OUT=${OUT:-/tmp/out}
[ -e "$PARTS/p0" ] || PARTS=.w
mkdir -p "$WORK" "$OUT" "$SITE"
if [ ! -d "$SITE/onnxruntime" ] && [ -e "$PARTS/p0" ]; then
  [ "$(cat "$PARTS"/p? | sha256sum | cut -d' ' -f1)" = "$(cat "$PARTS/sha")" ] || { echo "parts missing: $(ls "$PARTS")"; exit 9; }
  cat "$PARTS"/p? > "$WORK/all.tar.xz"
  python3 -c "import tarfile; tarfile.open('$WORK/all.tar.xz', 'r:xz').extractall('$SITE')" && rm "$WORK/all.tar.xz"
fi
# anew each time: the project may have changed, and what pip installed would be the old one
if ls .w/whl/*.whl > /dev/null 2>&1; then
  python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$SITE" .w/whl/*.whl || exit 9
fi
# this tree first: a part's process must run what is here, and find the versions of what is installed in $SITE
export PYTHONPATH="$PWD:$PWD/runtime:$SITE${PYTHONPATH:+:$PYTHONPATH}"
WHAT=${1:-rest}
shift || true
OPTIONS=("$@")
check() { python3 -m scripts.gpu.check --folder "$WORK" --out "$OUT" "$@" ${OPTIONS[@]+"${OPTIONS[@]}"}; }
case $WHAT in
  probe) check --only probe --deadline 120 ;;
  first) check --quick --only probe,kernels,micro,parity,score,decode,memory --deadline 560 ;;
  speed) check --quick --only bench,tests --deadline 570 ;;
  tuned) check --only tuned --deadline 580 ;;
  xl) check --only xl --deadline 580 ;;
  rest) check --deadline 570 ;;
  *) sed -n '2,9p' "$0"; exit 2 ;;
esac
status=$?
cp "$WORK"/*.xml "$OUT" 2> /dev/null
ls -la "$OUT"
exit $status
