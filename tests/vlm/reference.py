"""transformers' torch Qwen2.5-VL with random weights, and batches for both implementations; skipped without torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from g1jax import vlm

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")

IMAGE, VIDEO, START, END, PAD = 5, 6, 3, 4, 0
VOCAB = 97


@dataclass(frozen=True, kw_only=True)
class Case:
    """A tiny model and the shapes of a batch for it."""

    name: str
    heads: int = 4
    kv_heads: int = 2
    is_tied: bool = False
    size: int = 32
    layers: int = 2
    section: tuple[int, int, int] = (2, 1, 1)
    vision: dict[str, Any] = field(default_factory=dict)
    image: tuple[int, int] = (84, 112)
    texts: tuple[tuple[int, int], ...] = ((2, 3),)
    """Text tokens before and after the image, for each row."""
    padding: str = "left"
    num_images: int = 1


CASES = [
    Case(name="gqa_2_window_and_full"),
    Case(name="mha_tied", kv_heads=4, is_tied=True, texts=((4, 4),)),
    Case(name="mqa_left_padded", heads=8, kv_heads=1, section=(1, 1, 0), texts=((1, 2), (5, 3), (3, 9))),
    Case(name="right_padded_tied", is_tied=True, texts=((6, 2), (1, 1)), padding="right"),
    Case(name="all_full", vision={"fullatt_block_indexes": [0, 1]}, image=(56, 196), texts=((0, 5), (3, 1))),
    Case(name="all_windows_ragged", vision={"fullatt_block_indexes": [], "window_size": 56}, image=(140, 84)),
    Case(name="even_windows", image=(112, 224), texts=((2, 2), (2, 2))),
    Case(name="patch_is_token", vision={"patch_size": 28, "spatial_merge_size": 1, "temporal_patch_size": 1}),
    Case(name="two_images", num_images=2, image=(56, 84), texts=((3, 2), (1, 4))),
    Case(name="wide_gqa_4", heads=8, kv_heads=2, size=64, layers=3, section=(0, 2, 2), image=(28, 28)),
]


def make_model(case: Case, seed: int = 0) -> Any:
    """A torch model whose weights all matter."""
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCAB,
            "hidden_size": case.size,
            "intermediate_size": 48,
            "num_hidden_layers": case.layers,
            "num_attention_heads": case.heads,
            "num_key_value_heads": case.kv_heads,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(case.section)},
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_heads": 4,
            "out_hidden_size": case.size,
            "fullatt_block_indexes": [1],
            **case.vision,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=case.is_tied,
    )
    torch.set_num_threads(1)
    model = transformers.Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name or "ln_q" in name:
                weight.copy_(1 + 0.2 * noise)
            elif weight.ndim == 1:
                weight.copy_(0.2 * noise)
            else:
                fan_in = weight.shape[-1] if weight.ndim == 2 else weight[0].numel()
                weight.copy_(noise * (1.0 if "embed_tokens" in name else 1.5) / fan_in**0.5)
    return model.eval()


@dataclass(frozen=True)
class Batch:
    """Prompts and frames, for both implementations."""

    tokens: np.ndarray  # int32[B, S]
    mask: np.ndarray  # bool[B, S]
    frames: np.ndarray  # uint8[B, H, W, 3], or [B, I, H, W, 3]


def make_batch(case: Case, config: vlm.Config, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    height, width = case.image
    per_image = (height // config.vision.token_size) * (width // config.vision.token_size)
    rows = []
    for before, after in case.texts:
        image = [START, *[IMAGE] * per_image, END]
        rows.append([*rng.integers(7, VOCAB, before), *image * case.num_images, *rng.integers(7, VOCAB, after)])
    longest = max(map(len, rows))
    tokens = np.full((len(rows), longest), PAD, np.int32)
    mask = np.zeros((len(rows), longest), bool)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), None) if case.padding == "left" else slice(0, len(row))
        tokens[i, place], mask[i, place] = row, True
    images = (case.num_images,) if case.num_images > 1 else ()
    frames = rng.integers(0, 256, (len(rows), *images, height, width, 3)).astype(np.uint8)
    return Batch(tokens, mask, frames)


def torch_inputs(config: vlm.Config, batch: Batch) -> dict[str, Any]:
    frames = batch.frames.reshape(-1, *batch.frames.shape[-3:])
    side = config.vision.patch_size
    grid = [1, frames.shape[1] // side, frames.shape[2] // side]
    tokens = torch.tensor(batch.tokens, dtype=torch.long)
    return {
        "input_ids": tokens,
        "attention_mask": torch.tensor(batch.mask, dtype=torch.long),
        "pixel_values": torch.tensor(np.asarray(vlm.pixel_values(config.vision, frames))),
        "image_grid_thw": torch.tensor([grid] * len(frames)),
        "mm_token_type_ids": ((tokens == IMAGE) & torch.tensor(batch.mask)).int(),
    }


def torch_logits(model: Any, config: vlm.Config, batch: Batch) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(**torch_inputs(config, batch)).logits.float())


def torch_loss_gradients(model: Any, config: vlm.Config, batch: Batch) -> dict[str, np.ndarray]:
    """Gradients of the mean cross-entropy of the next token, by checkpoint name."""
    inputs = torch_inputs(config, batch)
    logits = model(**inputs).logits
    is_scored = inputs["attention_mask"][:, 1:].bool() & inputs["attention_mask"][:, :-1].bool()
    loss = torch.nn.functional.cross_entropy(logits[:, :-1][is_scored], inputs["input_ids"][:, 1:][is_scored])
    model.zero_grad()
    loss.backward()
    names = {"model.language_model.": "model.", "model.visual.": "visual."}
    gradients = {}
    for name, weight in model.named_parameters():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        gradients[name] = weight.grad.numpy()
    return gradients


def save_folder(model: Any, folder: Path, max_shard_size: str = "40KB") -> Path:
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def load_folder(folder: Path) -> Any:
    return transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
