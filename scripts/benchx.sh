#!/usr/bin/env bash
# BenchX on real data: raw data sets -> stores -> plan -> cells -> report. Each step keeps what is there: run it again to go on.
#   DATA=raw CHECKPOINTS=released bash scripts/benchx.sh                         BenchX as it was run
#   SUITE=benchx_fixed DATA=raw CHECKPOINTS=released bash scripts/benchx.sh      without its faults
# Words behind the command go to `medvlp bench run`, e.g. --seed 42, cluster=slurm. PLAN_ONLY=1 stops before the first cell.
set -euo pipefail
: "${DATA:?folder of the raw data sets and of benchx_splits, see configs/data/benchx.yaml}"
: "${CHECKPOINTS:?folder of released checkpoints, tokenizers and imagenet, see docs/how-to/run-benchx.md}"
: "${BIN:=}" "${SUITE:=benchx}" "${STORES:=stores/$SUITE}" "${RESULTS:=results/$SUITE}"
medvlp="${BIN:+$BIN/}medvlp"

encoders=()
add() {  # FORMAT FILE [OPTIONS]: an encoder whose file is there; the others are named
    if [ -e "$CHECKPOINTS/$2" ]; then encoders+=(--encoder "$1:$CHECKPOINTS/$2${3:+?$3}"); else echo "no $CHECKPOINTS/$2: $1 is left out" >&2; fi
}
bert="tokenizer=$CHECKPOINTS/Bio_ClinicalBERT"
add convirt ConVIRT.pth "$bert"
add gloria GLoRIA.ckpt
add gloria GLoRIA.ckpt "view=native&$bert"
add medclip_r50 MedCLIP-R50.bin "$bert"
add medclip_vit MedCLIP-ViT.bin "$bert"
add medklip MedKLIP.pth
add mflag M-FLAG_total.pth "tokenizer=$CHECKPOINTS/CXR-BERT-general"
add mgca_r50 MGCA-R50.ckpt
add mgca_r50 MGCA-R50.ckpt "view=native&$bert"
add mgca_vit MGCA-ViT.ckpt "$bert"
add mrm MRM.pth
add ptunifier PTUnifier.ckpt
add refers REFERS.pth
add timm imagenet

if [ ! -e "$STORES/mimic_cxr_jpg/store.json" ]; then
    "$medvlp" data prepare "configs/data/$SUITE.yaml" --root "$DATA" --out "$STORES" || echo "going on with the stores that there are" >&2
fi
"$medvlp" bench plan "benchmarks/suites/$SUITE.yaml" --store-root "$STORES" "${encoders[@]}" --out "$RESULTS" || true
[ -z "${PLAN_ONLY:-}" ] || exit 0
status=0
"$medvlp" bench run "benchmarks/suites/$SUITE.yaml" --store-root "$STORES" --missing-stores "${encoders[@]}" --out "$RESULTS" "$@" || status=$?
"$medvlp" bench add-results benchmarks/published/benchx.csv --out "$RESULTS" || true
"$medvlp" bench report "$RESULTS" --html "$RESULTS/report.html" --latex "$RESULTS/tables.tex" --csv "$RESULTS/scores.csv"
exit "$status"
