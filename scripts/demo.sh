#!/usr/bin/env bash
# The whole way once, on synthetic chests: raw data -> store -> pre-training -> benchmark -> report.
# Each step keeps what is already there, so that an interrupted demo goes on where it stopped.
set -euo pipefail
: "${BIN:?folder of the medvlp script}" "${DEMO:=demo}"
start=$SECONDS
step() { printf '\n== %s (%d s so far)\n' "$1" $((SECONDS - start)); }

step "1/6 write a phantom data set"
"$BIN/medvlp" phantom write --studies 360 --seed 0 --out "$DEMO/phantom"
step "2/6 prepare it"
"$BIN/medvlp" data prepare phantom --root "$DEMO/phantom" --out "$DEMO/store"
step "3/6 show and audit it"
"$BIN/medvlp" data show "$DEMO/store" --html "$DEMO/store.html"
"$BIN/medvlp" data audit "$DEMO/store" --json "$DEMO/audit.json" > "$DEMO/audit.txt"
step "4/6 pre-train ConVIRT"
"$BIN/medvlp" pretrain configs/pretrain/convirt_phantom.yaml data.store="$DEMO/store" run.dir="$DEMO/convirt"
step "5/6 run the benchmark"
"$BIN/medvlp" bench run benchmarks/suites/phantom.yaml --store "$DEMO/store" --encoder "$DEMO/convirt" --out "$DEMO/results"
step "6/6 write the report"
"$BIN/medvlp" bench report "$DEMO/results" --html "$DEMO/report.html"

cat <<END

Done in $((SECONDS - start)) seconds.
  report       $DEMO/report.html     (open it in a browser)
  data         $DEMO/store.html      $DEMO/audit.txt
  model        $DEMO/convirt/model
  MLflow       $BIN/mlflow ui --backend-store-uri sqlite:///$DEMO/mlflow.db
END
