"""Reading untrusted tokenizer files: JSON, components and sizes are checked before a library loads them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from g1jax.errors import ConfigError
from g1jax.terminal import one_line
from g1jax.untrusted import excerpt, read_bytes, read_json, read_object, read_text

if TYPE_CHECKING:
    import tokenizers

FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
MAX_TOKENS = 2**22  # the limit of a model's vocabulary
MAX_TABLE = 2**29  # bytes of a table of all tokens, padded to the longest
_MAX_VALUES = 4_000_000  # a vocabulary of 262,144 tokens has two million
_MAX_TEMPLATE = 2**16
_MAX_PATTERN = 4096
_JSON_FILES = (FILE, CONFIG_FILE, "special_tokens_map.json", "added_tokens.json", "vocab.json", "chat_template.json")
_ADDED_KEYS = {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special", "__type"}
_TEXT_FILES = ("merges.txt", "vocab.txt")
# They change the length of a text by a small factor only; each `Replace` or `Precompiled` can double it.
_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip", "Nmt", "ByteLevel", "Prepend")


def load_file(path: Path) -> "tokenizers.Tokenizer":
    """The tokenizer of a `tokenizer.json`.

    Raises:
        ConfigError: tokenizers is not installed, or the file is missing or not a supported tokenizer.
    """
    try:
        import tokenizers
    except ImportError:
        raise ConfigError("tokenizers is not installed: pip install tokenizers") from None
    ConfigError.require(path.is_file(), f"{path.parent} has no {path.name}")
    check_tokenizer_json(path)
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except BaseException as error:  # the library raises nothing narrower; a Rust panic is a BaseException
        raise _as_config_error(error, f"{path} is not a tokenizer") from None
    _disable_padding(backend, str(path))
    return backend


def check_tokenizer_json(path: Path) -> None:
    """Raises `ConfigError` for content that would take the library minutes or all memory."""
    content = read_object(path, max_values=_MAX_VALUES, error=ConfigError)
    model: Any = content.get("model")
    ConfigError.require(isinstance(model, dict), f"{path} is not a tokenizer: it has no model")
    vocab = model.get("vocab")
    is_valid = isinstance(vocab, dict) and all(type(i) is int and 0 <= i < MAX_TOKENS for i in vocab.values())
    ConfigError.require(is_valid, f"{path}: the vocabulary does not map texts to ids below {MAX_TOKENS}")
    _check_added(content.get("added_tokens"), path)
    for part in _flatten(content.get("normalizer"), "normalizers"):
        kind = part.get("type")
        ConfigError.require(
            kind in _NORMALIZERS, f"{path}: a normalizer {excerpt(kind)}: expected one of {', '.join(_NORMALIZERS)}"
        )
        length = len(str(part.get("prepend", "")))
        ConfigError.require(
            length <= 16, f"{path}: a normalizer that prepends {length} characters: expected at most 16"
        )
    for part in _flatten(content.get("pre_tokenizer"), "pretokenizers"):
        length = len(str(part.get("pattern", "")))
        ConfigError.require(
            length <= _MAX_PATTERN, f"{path}: a pattern of {length} characters: expected at most {_MAX_PATTERN}"
        )


def _check_added(tokens: Any, path: Path) -> None:
    """Raises `ConfigError` for unknown options, which the library would print verbatim on standard output."""
    for token in tokens if isinstance(tokens, list) else []:
        unknown = sorted(set(token) - _ADDED_KEYS) if isinstance(token, dict) else []
        ConfigError.require(not unknown, f"{path}: an added token with the unknown option {excerpt(unknown[:1])}")


def _flatten(part: Any, key: str) -> list[dict[str, Any]]:
    """A component, or those of a (nested) sequence."""
    if not isinstance(part, dict):
        return []
    if part.get("type") != "Sequence":
        return [part]
    inner = part.get(key)
    return [found for item in inner for found in _flatten(item, key)] if isinstance(inner, list) else []


def chat_template(folder: Path) -> Any:
    """The chat template in the folder's config, or None."""
    config = read_json(folder / CONFIG_FILE, error=ConfigError)
    return config.get("chat_template") if isinstance(config, dict) else None


def load_hf(folder: Path) -> Any:
    """The tokenizer that transformers loads from a folder; code in the folder is not run.

    Raises:
        ConfigError: transformers or jinja2 is not installed, or there is no fast tokenizer.
    """
    try:
        import jinja2  # noqa: F401  (for chat templates)
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"{folder} has a {CONFIG_FILE}, which needs transformers, but {error.name} is not installed: "
            "pip install transformers jinja2"
        ) from None
    _check_folder(folder)
    try:
        hf = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except BaseException as error:  # anything, from a missing file to an unknown class
        raise _as_config_error(error, f"transformers cannot load the tokenizer in {folder}") from error
    ConfigError.require(
        hasattr(hf, "backend_tokenizer"),
        f"{folder}: {type(hf).__name__} is not a fast tokenizer, of the tokenizers library",
    )
    template = hf.chat_template
    is_short = not isinstance(template, str) or len(template) <= _MAX_TEMPLATE
    ConfigError.require(is_short, f"{folder}: a chat template of more than {_MAX_TEMPLATE} characters")
    _disable_padding(hf.backend_tokenizer, str(folder))
    return hf


def _check_folder(folder: Path) -> None:
    for name in _JSON_FILES:
        if not (folder / name).is_file():
            continue
        if name == FILE:
            check_tokenizer_json(folder / name)
            continue
        content = read_json(folder / name, max_values=_MAX_VALUES, error=ConfigError)
        added = content.get("added_tokens_decoder") if isinstance(content, dict) else None
        _check_added(list(added.values()) if isinstance(added, dict) else added, folder / name)
    for name in _TEXT_FILES:
        if (folder / name).is_file():
            read_text(folder / name, error=ConfigError)
    if (folder / "chat_template.jinja").is_file():
        read_bytes(folder / "chat_template.jinja", max_bytes=_MAX_TEMPLATE, error=ConfigError)


def _disable_padding(backend: "tokenizers.Tokenizer", where: str) -> None:
    """Turns off truncation and padding; raises `ConfigError` if the table of its tokens would be too large."""
    backend.no_truncation()
    backend.no_padding()
    vocab = backend.get_vocab(with_added_tokens=True)
    ConfigError.require(len(vocab) > 0, f"{where}: a tokenizer without tokens")
    size, longest = max(vocab.values()) + 1, max(map(len, vocab))
    ConfigError.require(size <= MAX_TOKENS, f"{where}: a tokenizer of {size} tokens: expected at most {MAX_TOKENS}")
    is_small = size * longest <= MAX_TABLE
    ConfigError.require(
        is_small, f"{where}: {size} tokens of up to {longest} characters: a table of more than {MAX_TABLE} bytes"
    )


def _as_config_error(error: BaseException, message: str) -> BaseException:
    """An error or Rust panic of a library as a `ConfigError`; other exceptions, such as Ctrl-C, unchanged."""
    is_panic = type(error).__name__ == "PanicException"
    return ConfigError(f"{message}: {one_line(str(error), 200)}") if isinstance(error, Exception) or is_panic else error
