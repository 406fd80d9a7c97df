"""The setup that a run saves in its folder, so that it does not depend on files outside of it once it has started.

    setup/model/          the model's config.json, tokenizer and prompts; under LoRA also the frozen weights, linked
    setup/levels.json     the level of each game, presets resolved
    setup/budgets.json    the maximum tokens of a response, by game, where they were measured
    setup/pictures/       the pictures of games that show some
    setup/sources.json    the paths of the base weights and the dataset, with checksums and fingerprints

A run of an earlier version has no setup; it reads the files that its config names.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from g1jax import vlm
from g1jax.envs import images
from g1jax.envs.core import Game
from g1jax.envs.level import keys_of
from g1jax.envs.registry import make_plain
from g1jax.errors import ExperimentError, LevelError
from g1jax.files import file_name, write_atomically
from g1jax.rl.policy import Policy
from g1jax.sft.dataset import Dataset
from g1jax.training import checksums
from g1jax.training.checksums import DamagedError
from g1jax.training.run_folder import SETUP
from g1jax.training.saved_model import save_prompts
from g1jax.untrusted import read_object

MODEL, LEVELS, BUDGETS, PICTURES, SOURCES = (
    f"{SETUP}/model",
    f"{SETUP}/levels.json",
    f"{SETUP}/budgets.json",
    f"{SETUP}/pictures",
    f"{SETUP}/sources.json",
)
_DRAFT = ".setup-"
_MAX_COPY = 256 * 2**20  # bytes of a weights file that is copied where it cannot be linked


def has_setup(folder: Path) -> bool:
    """Whether a run's folder has a saved setup."""
    return (folder / SOURCES).is_file()


def save_setup(
    folder: Path,
    games: Sequence[Game[Any]],
    policy: Policy,
    datasets: Sequence[Dataset] | None,
    *,
    dataset: str,
    weights: Path | None,
    is_frozen: bool,
) -> None:
    """Saves a run's setup in its folder, atomically.

    Args:
        folder: the run's.
        games: at their levels.
        policy: its config and tokenizer are saved.
        datasets: what the cold start learns, if it reads a dataset.
        dataset: the folder of that dataset.
        weights: the folder of the base weights; None if the initial weights are random.
        is_frozen: the base weights stay frozen under LoRA, and are saved too.

    Raises:
        ExperimentError: something else has that name.
        OSError: the setup cannot be written.
    """
    target = folder / SETUP
    ExperimentError.require(
        not target.exists(), f"{target} exists and is not a run's setup: move it away, or give another --workdir"
    )
    for leftover in folder.glob(f"{_DRAFT}*"):  # of a killed process
        shutil.rmtree(leftover)
    draft = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=folder))
    try:
        sources: dict[str, Any] = {"format": 1}
        if datasets is not None:
            sources["dataset"] = {"folder": str(Path(dataset).resolve()), "fingerprints": fingerprints(datasets)}
        _write(draft / SETUP, sources, games, policy, weights, is_frozen)
        (draft / SETUP).rename(target)
    finally:
        shutil.rmtree(draft)


def _write(
    folder: Path,
    sources: dict[str, Any],
    games: Sequence[Game[Any]],
    policy: Policy,
    weights: Path | None,
    is_frozen: bool,
) -> None:
    model = folder / "model"
    model.mkdir(parents=True)
    write_atomically(model / "config.json", _as_text(vlm.to_hf(policy.config)))
    policy.tokenizer.save(model)
    save_prompts(policy, model)
    levels = {game.id: keys_of(game.level) for game in games}
    write_atomically(folder / "levels.json", _as_text(levels))
    write_atomically(folder / "budgets.json", _as_text({game.id: tokens for game, tokens in policy.budgets}))
    sources["pictures"] = {}
    for game in games:
        if (pictures := getattr(game, "pictures", None)) is not None:
            (folder / "pictures").mkdir(exist_ok=True)
            images.save_images(pictures, folder / "pictures" / f"{file_name(game.id)}.npz")
            sources["pictures"][game.id] = pictures.fingerprint
    if weights is not None:
        files = sorted([*weights.glob("*.safetensors"), *weights.glob("*.safetensors.index.json")])
        sources["weights"] = {"folder": str(weights.resolve()), "files": checksums.of_files(weights, files)}
        if is_frozen:
            _link(files, model)
    write_atomically(folder / "sources.json", _as_text(sources))


def read_games(folder: Path, game_ids: Iterable[str]) -> tuple[Game[Any], ...]:
    """The games of a run at their saved levels.

    Raises:
        ExperimentError: the file is damaged or from another version.
    """
    file = folder / LEVELS
    levels, pictures = read_object(file, error=ExperimentError), _source(folder, "pictures") or {}
    games = []
    for game_id in game_ids:
        keys = levels.get(game_id)
        if not isinstance(keys, dict):
            raise ExperimentError(f"{file}: no level of {game_id}")
        try:
            games.append(_make(game_id, keys, pictures.get(game_id), folder / PICTURES / f"{file_name(game_id)}.npz"))
        except LevelError as error:
            raise ExperimentError(f"{file}: {error}") from None
    return tuple(games)


def _make(game_id: str, keys: Mapping[str, Any], pictures: str | None, saved: Path) -> Game[Any]:
    """A game at a level, with the pictures that its level names if they are unchanged, else with the saved ones."""
    if pictures is not None:
        with contextlib.suppress(LevelError):
            game = make_plain(game_id, keys)
            found = getattr(game, "pictures", None)
            if found is not None and found.fingerprint == pictures:
                return game
        keys = {**keys, "images": str(saved.resolve())}
    return make_plain(game_id, keys)


def resolved(game: Game[Any]) -> Game[Any]:
    """The same game, with the name of the pictures that `auto` finds in its level."""
    pictures = getattr(game, "pictures", None)
    return game.with_keys(images=pictures.name) if pictures and game.level.images == "auto" else game


def read_budgets(folder: Path, games: Sequence[Game[Any]]) -> tuple[tuple[Game[Any], int], ...]:
    """The saved token budgets of those games that have one; a run of an earlier version saved none.

    Raises:
        ExperimentError: the file is damaged.
    """
    file = folder / BUDGETS
    saved = read_object(file, error=ExperimentError) if file.is_file() else {}
    for name, tokens in saved.items():
        ExperimentError.require(type(tokens) is int and tokens > 0, f"{file}: {name}: expected a number of tokens")
    return tuple((game, saved[game.id]) for game in games if game.id in saved)


# Base weights and dataset, which are too large to copy


def weights_of(folder: Path, named: Path | None) -> Path | None:
    """The folder with the base weights that a run started from; None if its initial weights were random.

    Searches the run's folder, their original folder, and the folder that the config names now (`named`).

    Raises:
        ExperimentError: none of these has the same weights.
    """
    wanted = _source(folder, "weights")
    if wanted is None:
        return None
    places = [folder / MODEL, Path(str(wanted.get("folder"))), *([] if named is None else [named])]
    reasons: dict[Path, str] = {}
    for place in dict.fromkeys(path.resolve() for path in places):
        try:
            checksums.compare(place, wanted.get("files") or {})
        except (DamagedError, OSError) as error:
            if place.is_dir() and place != (folder / MODEL).resolve():
                reasons[place] = str(error)
            continue
        return place
    raise ExperimentError(
        f"{folder}: the base weights that this run started from are needed, and are not in {wanted.get('folder')}: "
        f"{'; '.join(reasons.values()) or 'no such folder'}. Put them back there"
    )


def dataset_of(folder: Path, named: str) -> Path:
    """The folder of a run's dataset: the one that the config names now if it exists, else the original one."""
    wanted, path = _source(folder, "dataset"), Path(named)
    return path if path.is_dir() or wanted is None else Path(str(wanted.get("folder")))


def check_dataset(folder: Path, source: Path, datasets: Sequence[Dataset]) -> None:
    """Checks that a dataset is the one that the run has learned from so far.

    Raises:
        ExperimentError: the demonstrations of a game have changed; the message names it.
    """
    wanted = _source(folder, "dataset")
    if wanted is None:
        return
    found, known = fingerprints(datasets), wanted.get("fingerprints")
    changed = [game for game in found if not isinstance(known, dict) or known.get(game) != found[game]]
    ExperimentError.require(
        not changed,
        f"{source} has changed since this run started (demonstrations of {', '.join(changed)}): restore the dataset, "
        "or give another --workdir",
    )


def fingerprints(datasets: Iterable[Dataset]) -> dict[str, str]:
    """A fingerprint of each game's demonstrations: of responses and images, in order."""
    found = {}
    for dataset in datasets:
        digest = hashlib.blake2b(digest_size=16)
        for response, image in zip(dataset.responses, dataset.images, strict=True):
            content = image if isinstance(image, bytes) else image.read_bytes()
            for part in (response.encode(), content):
                digest.update(len(part).to_bytes(8, "little"))
                digest.update(part)
        found[dataset.game.id] = digest.hexdigest()
    return found


def _source(folder: Path, name: str) -> Mapping[str, Any] | None:
    source = read_object(folder / SOURCES, error=ExperimentError).get(name, {})
    ExperimentError.require(isinstance(source, dict), f"{folder / SOURCES}: {name} is not an object")
    return source or None


def _link(files: Iterable[Path], folder: Path) -> None:
    """Hard-links files into a folder; copies small ones where the file system has no links."""
    for file in files:
        target = folder / file.name
        try:
            os.link(file.resolve(), target)
        except OSError:
            if file.stat().st_size <= _MAX_COPY:
                with contextlib.suppress(OSError):  # only needed if the original is removed
                    shutil.copyfile(file, target)


def _as_text(content: Any) -> str:
    return json.dumps(content, indent=1) + "\n"
