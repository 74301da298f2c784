#!/usr/bin/env bash
# Train, index and measure the SAE that ships with the package, from the texts named in docs/default-sae.md.
#
#     training/default-sae.sh CORPUS OUT
#
# CORPUS: folder of the .jsonl.gz files; OUT: folder of the SAE. About two hours on two cores, 12 GB of disk; an interrupt
# loses little: run it again. To ship it, copy OUT to src/steersman/data/sae, without OUT/training and OUT/indexing.
set -euo pipefail
corpus=$1 out=$2
steersman=${STEERSMAN:-steersman}
texts=()
for file in "$corpus"/*.jsonl.gz; do texts+=(--text "$file"); done

# Characters: a third chats, a quarter books and web pages, a fifth encyclopedic text and tasks, then talk, code, languages.
"$steersman" sae train "${texts[@]}" --out "$out" \
  --mix chat=0.35 --mix prose=0.18 --mix web=0.07 --mix encyc=0.06 --mix task=0.14 \
  --mix dialogue=0.08 --mix code_doc=0.05 --mix multiling=0.05 --mix mwe=0.02 \
  --layer 9 --latents 8192 -k 20 --collect 10000000 --on-policy 250000 --tokens 18000000 --store-dtype bfloat16

# Contexts ship with the package, so they come from sources that allow it: public domain, MIT, Apache-2.0, BSD, CC0, CC-BY.
"$steersman" sae index "$out" "${texts[@]}" --name default --tokens 1500000 \
  --mix classic_books=0.16 --mix nltk_state_union=0.03 --mix tinyshakespeare=0.03 --mix nltk_inaugural=0.02 --mix genesis=0.01 \
  --mix nltk_masc=0.08 --mix axbench=0.14 --mix gsm8k=0.05 --mix gpteacher/roleplay=0.06 --mix gpteacher/codegen=0.05 \
  --mix awesome_chatgpt_prompts=0.03 --mix rasbt_instructions=0.01 --mix flan_cot=0.06 --mix t0_subset=0.07 \
  --mix synthetic_persona_chat=0.06 --mix taskmaster4=0.02 --mix tldr_pages=0.05 --mix rust_book=0.02 \
  --mix prompt_engineering_guide=0.03 --mix anthropic_evals/persona=0.02

for mix in chat=1 prose=1 code_doc=1 multiling=1; do
  "$steersman" sae measure "$out" "${texts[@]}" --mix "$mix" --held-out 0.01 --json
done
