"""Replaces a policy's tokenizer: tokens in both keep their embedding, new ones get a random one.

python scripts/retokenize.py g1jax/data/base g1jax/vlm/data runs/retokenized
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from g1jax import vlm


def main() -> None:
    """Reads the command line and writes the policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a policy's folder, with its tokenizer")
    parser.add_argument("tokenizer", type=Path, help="the folder of the new tokenizer, with the same vocabulary size")
    parser.add_argument("folder", type=Path, help="the output folder; must not hold weights yet")
    args = parser.parse_args()
    config, params = vlm.load(args.model)
    before, after = (vlm.Tokenizer.load(str(folder)) for folder in (args.model, args.tokenizer))
    if not config.text.is_tied or before.vocab_size != after.vocab_size:
        sys.exit("retokenize: needs a policy with tied embeddings, and a tokenizer with the same vocabulary size")
    old_ids = before.backend.get_vocab()
    old = np.asarray(params["model"]["embed_tokens"]["embedding"])
    new = np.random.default_rng(0).normal(0.0, 0.02, old.shape).astype(old.dtype)
    shared = [(i, old_ids[token]) for token, i in after.backend.get_vocab().items() if token in old_ids]
    for i, old_id in shared:
        new[i] = old[old_id]
    params["model"]["embed_tokens"]["embedding"] = new
    vlm.save(config, params, args.folder)
    after.save(args.folder)
    print(f"{args.folder}: {len(shared)} of {after.vocab_size} tokens keep their embedding")


if __name__ == "__main__":
    main()
