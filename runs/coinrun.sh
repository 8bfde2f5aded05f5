#!/usr/bin/env bash
# The case study's footage: hard CoinRun, all its looks, levels 0 to 9,999 to train on and 1,000,000 and up to test on.
# A folder for each policy: random, as in the paper, and explore, which gets further into the levels. Interrupted, it
# goes on where it stopped. 10 million frames are 123 GB.
#
#   runs/coinrun.sh                     data/coinrun-{random,explore} and -test of each
#   FRAMES=300_000 OUT=/data runs/coinrun.sh explore
set -euo pipefail
frames=${FRAMES:-10_000_000} test_frames=${TEST_FRAMES:-50_000} out=${OUT:-data}

[ $# -gt 0 ] || set -- random explore
for policy in "$@"; do
  python -m minigenie collect coinrun --policy "$policy" --frames "$frames" --out "$out/coinrun-$policy"
  python -m minigenie collect coinrun --policy "$policy" --split test --frames "$test_frames" --out "$out/coinrun-$policy-test"
done
