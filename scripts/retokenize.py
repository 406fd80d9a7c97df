"""Gives a policy another tokenizer: tokens that both have keep their embedding, the others begin at random.

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
    parser.add_argument("tokenizer", type=Path, help="the folder of the other tokenizer, of as many tokens")
    parser.add_argument("folder", type=Path, help="where to write to; must not hold weights yet")
    args = parser.parse_args()
    config, params = vlm.load(args.model)
    before, after = (vlm.Tokenizer.load(str(folder)) for folder in (args.model, args.tokenizer))
    if not config.text.is_tied or before.vocab_size != after.vocab_size:
        sys.exit("retokenize: takes policies with tied embeddings, and a tokenizer of as many tokens")
    places = before.backend.get_vocab()
    old = np.asarray(params["model"]["embed_tokens"]["embedding"])
    new = np.random.default_rng(0).normal(0.0, 0.02, old.shape).astype(old.dtype)
    shared = [(i, places[token]) for token, i in after.backend.get_vocab().items() if token in places]
    for i, place in shared:
        new[i] = old[place]
    params["model"]["embed_tokens"]["embedding"] = new
    vlm.save(config, params, args.folder)
    after.save(args.folder)
    print(f"{args.folder}: {len(shared)} of {after.vocab_size} tokens keep their embedding")


if __name__ == "__main__":
    main()
