#!/usr/bin/env bash
# The whole way once in three dimensions, on synthetic chest CTs: raw data -> store -> pre-training -> benchmark -> report.
# Each step keeps what is already there, so that an interrupted demo goes on where it stopped.
set -euo pipefail
: "${BIN:?folder of the medvlp script}" "${DEMO:=demo_ct}"
start=$SECONDS
step() { printf '\n== %s (%d s so far)\n' "$1" $((SECONDS - start)); }

step "1/5 write phantom CTs"
if [ ! -f "$DEMO/phantom/phantom_ct.json" ]; then
  "$BIN/medvlp" phantom write --layout phantom_ct --studies 240 --size 48 --seed 0 --out "$DEMO/phantom"
fi
step "2/5 prepare them"
"$BIN/medvlp" data prepare phantom_ct --root "$DEMO/phantom" --out "$DEMO/store"
"$BIN/medvlp" data show "$DEMO/store" --html "$DEMO/store.html"
step "3/5 pre-train ConVIRT on volumes"
"$BIN/medvlp" pretrain configs/pretrain/convirt_phantom_ct.yaml data.store="$DEMO/store" run.dir="$DEMO/convirt"
step "4/5 run the benchmark, beside the same tower untrained"
"$BIN/medvlp" bench run benchmarks/suites/phantom_ct.yaml --store "$DEMO/store" --encoder "$DEMO/convirt" \
  --encoder "random:$DEMO/convirt" --out "$DEMO/results" --jobs 2
step "5/5 write the report"
"$BIN/medvlp" bench report "$DEMO/results" --html "$DEMO/report.html"

cat <<END

Done in $((SECONDS - start)) seconds.
  report       $DEMO/report.html     (open it in a browser; volumes to scroll through are under "Volumes")
  data         $DEMO/store.html
  model        $DEMO/convirt/model
END
