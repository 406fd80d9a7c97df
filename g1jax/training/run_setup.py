"""What a run is made of, kept in its folder, so that nothing outside decides what the run is once it has begun.

    setup/model/          the model's config.json and its tokenizer; under LoRA also the frozen weights, as links
    setup/levels.json     the level of each game: presets resolved, prompts as text
    setup/pictures/       the pictures of a game that shows some
    setup/sources.json    where the base weights and the dataset lie, and their checksums and fingerprints

A run of an earlier version has none of these, and reads what its config names.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from g1jax import envs, vlm
from g1jax.envs import images
from g1jax.envs.core import Game
from g1jax.errors import ExperimentError, LevelError
from g1jax.files import write_atomically
from g1jax.foreign import read_json
from g1jax.rl.policy import Policy
from g1jax.sft.dataset import Dataset
from g1jax.training import checksums
from g1jax.training.checksums import DamagedError
from g1jax.training.config import Experiment
from g1jax.training.run_folder import SETUP

MODEL, LEVELS, PICTURES, SOURCES = (
    f"{SETUP}/model",
    f"{SETUP}/levels.json",
    f"{SETUP}/pictures",
    f"{SETUP}/sources.json",
)
_DRAFT = ".setup-"
_MAX_COPY = 256 * 2**20  # frozen weights of up to so many bytes are copied where they cannot be linked


def is_kept(folder: Path) -> bool:
    """Whether a run's folder holds what the run is made of."""
    return (folder / SOURCES).is_file()


def keep(
    folder: Path,
    games: Sequence[Game[Any]],
    policy: Policy,
    datasets: Sequence[Dataset] | None,
    *,
    dataset: str,
    weights: Path | None,
    is_frozen: bool,
) -> None:
    """Writes what a run is made of into its folder, all or nothing.

    Args:
        folder: the run's.
        games: at their levels.
        policy: its config and tokenizer are kept.
        datasets: what its cold start learns, if that is read from a dataset.
        dataset: the folder of that.
        weights: the folder of its base weights, if it begins from some.
        is_frozen: these stay as they are, under LoRA, and are kept too.

    Raises:
        ExperimentError: there is something else by that name.
        OSError: it cannot be written.
    """
    target = folder / SETUP
    ExperimentError.require(
        not target.exists(), f"{target} is there and is not a run's: move it away, or give another --workdir"
    )
    for left in folder.glob(f"{_DRAFT}*"):  # by a kill
        shutil.rmtree(left)
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
    levels = {game.id: dataclasses.asdict(game.level) for game in games}
    write_atomically(folder / "levels.json", _as_text(levels))
    sources["pictures"] = {}
    for game in games:
        if (pictures := getattr(game, "pictures", None)) is not None:
            (folder / "pictures").mkdir(exist_ok=True)
            images.save_images(pictures, folder / "pictures" / f"{game.id}.npz")
            sources["pictures"][game.id] = _fingerprint(pictures)
    if weights is not None:
        files = sorted([*weights.glob("*.safetensors"), *weights.glob("*.safetensors.index.json")])
        sources["weights"] = {"folder": str(weights.resolve()), "files": checksums.of_files(weights, files)}
        if is_frozen:
            _link(files, model)
    write_atomically(folder / "sources.json", _as_text(sources))


def read_games(folder: Path, game_ids: Iterable[str]) -> tuple[Game[Any], ...]:
    """The games of a run at the levels that are kept.

    Raises:
        ExperimentError: the file is damaged, or of another version.
    """
    file = folder / LEVELS
    levels, pictures = read_json(file, error=ExperimentError), _source(folder, "pictures") or {}
    games = []
    for game_id in game_ids:
        keys = levels.get(game_id) if isinstance(levels, dict) else None
        if not isinstance(keys, dict):
            raise ExperimentError(f"{file}: no level of {game_id}")
        try:
            games.append(_make(game_id, keys, pictures.get(game_id), _pictures_file(folder, game_id)))
        except LevelError as error:
            raise ExperimentError(f"{file}: {error}") from None
    return tuple(games)


def _make(game_id: str, keys: Mapping[str, Any], pictures: str | None, kept: Path) -> Game[Any]:
    """A game at a level, with the pictures that its level names if they are the same still, else with the kept ones."""
    if pictures is not None:
        with contextlib.suppress(LevelError):
            game = envs.make(game_id, **keys)
            if _fingerprint(getattr(game, "pictures", None)) == pictures:
                return game
        keys = {**keys, "images": str(kept.resolve())}
    return envs.make(game_id, **keys)


def _pictures_file(folder: Path, game_id: str) -> Path:
    return folder / PICTURES / f"{game_id}.npz"


def _fingerprint(pictures: images.ImageSet | None) -> str:
    if pictures is None:
        return ""
    digest = hashlib.blake2b(repr((pictures.class_names, pictures.images.shape)).encode(), digest_size=16)
    digest.update(pictures.images.tobytes())
    return digest.hexdigest()


def resolved(game: Game[Any]) -> Game[Any]:
    """The same game with a level that names no file: a prompt as its text, and the pictures that `auto` found.

    Raises:
        LevelError: the file of the prompt is empty, or what it holds would be taken for the name of another.
    """
    changes: dict[str, Any] = {}
    prompt, pictures = game.level.prompt, getattr(game, "pictures", None)
    if prompt.startswith("@"):
        text = Path(prompt[1:]).read_text("utf-8")
        if not text or text.startswith("@"):
            raise LevelError(f"{game.id}: {prompt[1:]}: a prompt is not empty, and does not begin with @")
        changes["prompt"] = text
    if pictures is not None and game.level.images == "auto":
        changes["images"] = pictures.name
    return type(game)(dataclasses.replace(game.level, **changes)) if changes else game


def with_prompts(experiment: Experiment, games: Sequence[Game[Any]]) -> Experiment:
    """The experiment with the prompts that it names by a file as the text that is kept."""
    levels = {
        game_id: {**keys, "prompt": next(game.level.prompt for game in games if game.id == game_id)}
        if str(keys.get("prompt", "")).startswith("@") and any(game.id == game_id for game in games)
        else keys
        for game_id, keys in experiment.levels.items()
    }
    return dataclasses.replace(experiment, levels=levels) if levels != experiment.levels else experiment


# What is too large to keep


def weights_of(folder: Path, named: Path | None) -> Path | None:
    """The folder with the base weights of a run, which are those that it began from; None if it began from none.

    They are looked for in the run's folder, where they were, and where the config names them now.

    Raises:
        ExperimentError: they are in none of these, or are others.
    """
    wanted = _source(folder, "weights")
    if wanted is None:
        return None
    places = [folder / MODEL, Path(str(wanted.get("folder"))), *([] if named is None else [named])]
    why: dict[Path, str] = {}
    for place in dict.fromkeys(path.resolve() for path in places):
        try:
            checksums.compare(place, wanted.get("files") or {})
        except (DamagedError, OSError) as error:
            if place.is_dir() and place != (folder / MODEL).resolve():
                why[place] = str(error)
            continue
        return place
    raise ExperimentError(
        f"{folder}: the base weights that this run began from are needed, and are not in {wanted.get('folder')}: "
        f"{'; '.join(why.values()) or 'no such folder'}. Put them back there"
    )


def dataset_of(folder: Path, named: str) -> Path:
    """Where a run's dataset lies: where the config names it now, if it is there, or where it was."""
    wanted = _source(folder, "dataset")
    where = Path(named)
    return where if where.is_dir() or wanted is None else Path(str(wanted.get("folder")))


def check_dataset(folder: Path, where: Path, datasets: Sequence[Dataset]) -> None:
    """Refuses a dataset that is another than the run has learnt from so far.

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
        f"{where} has changed since this run began (what it says of {', '.join(changed)}): put the dataset back as it "
        "was, or give another --workdir",
    )


def fingerprints(datasets: Iterable[Dataset]) -> dict[str, str]:
    """Of each game's demonstrations, by what a run reads of them: responses and images, in their order."""
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
    sources = read_json(folder / SOURCES, error=ExperimentError)
    source = sources.get(name, {}) if isinstance(sources, dict) else None
    ExperimentError.require(isinstance(source, dict), f"{folder / SOURCES}: {name} is not an object")
    return source or None


def _link(files: Iterable[Path], folder: Path) -> None:
    """Links files into a folder, which takes no space; small ones are copied where that cannot be."""
    for file in files:
        target = folder / file.name
        try:
            os.link(file.resolve(), target)
        except OSError:
            if file.stat().st_size <= _MAX_COPY:
                with contextlib.suppress(OSError):  # it is only missed if the original goes
                    shutil.copyfile(file, target)


def _as_text(content: Any) -> str:
    return json.dumps(content, indent=1) + "\n"
