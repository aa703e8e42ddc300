#!/bin/sh
# Photos in, labels out: demo.sh PVT_INFER PYTHON MODEL PHOTO... prints the answers of out/MODEL.pt and
# draws them.
set -e
infer=$1 python=$2 model=$3
shift 3
"$infer" --model "out/$model.pt" --topk 5 "$@"
"$infer" --model "out/$model.pt" --topk 5 --format json "$@" > out/predictions.jsonl
"$python" examples/plot_predictions.py out/predictions.png -i out/predictions.jsonl --title "$model"
echo
echo "answers of $model, picture: out/predictions.png"
