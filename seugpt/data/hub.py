"""Models on the Hugging Face hub, downloaded once into huggingface_hub's cache, and checked.

A model is named org/name, or org/name@revision; OpenAI's GPT-2 also as nanoGPT names it.
"""

import re
from pathlib import Path

from seugpt.data.download import file_sha256
from seugpt.data.json_file import read_json
from seugpt.errors import CheckpointError

OPENAI = {
    name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
}
NAME = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w./-]+))?")
LOCAL_SUFFIXES = (".pt", ".json", ".safetensors")  # of a path that does not exist
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
OPTIONAL_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)
EXTRAS = {"safetensors": "0.8.0", "huggingface_hub": "2.4.0"}  # package: version to install


def import_extra(package, purpose="Hugging Face models"):
    """An optional package. Raises CheckpointError with the command that installs it."""
    try:
        return __import__(f"{package}.torch" if package == "safetensors" else package)
    except ImportError:
        raise CheckpointError(
            f"{purpose} need the package {package}: python -m pip install "
            f"{package}=={EXTRAS[package]}"
        ) from None


def is_hub_name(source):
    """Whether `source` names a model on the hub, and nothing that is or should be on this disk."""
    path = Path(source)
    if path.exists():
        return False
    is_local = path.parent.exists() or source.endswith(LOCAL_SUFFIXES)
    return source in OPENAI or (NAME.fullmatch(source) is not None and not is_local)


def download_model(source, weights=True):
    """The folder of a model on the hub. Raises CheckpointError saying why it cannot be had.

    weights=False leaves out the weights: a tokenizer needs only the small files.
    """
    hub = import_extra("huggingface_hub")
    match = NAME.fullmatch(OPENAI.get(source, source))
    repository, revision = match["repository"], match["revision"]

    def fetch(file):
        return download_file(hub, repository, revision, file)

    def find_cached(file):
        return hub.try_to_load_from_cache(repository, file, revision=revision)

    def fetch_optional(file):
        if find_cached(file) is hub._CACHED_NO_EXIST:  # the hub has said so before
            return None
        try:
            return fetch(file)
        except hub.errors.LocalEntryNotFoundError:  # the hub was not reached
            if was_cached:  # what is missing from the cache is not in the model either
                return None
            raise
        except hub.errors.EntryNotFoundError:
            return None

    try:
        was_cached = isinstance(find_cached("config.json"), str)
        folder = fetch("config.json").parent
        if weights and fetch_optional(WEIGHTS) is None:
            index = fetch_optional(INDEX)
            if index is None and find_cached(INDEX) is None:
                fetch(WEIGHTS)  # says that the hub cannot be reached
            for shard in shards_of(index, source):
                fetch(shard)
        for file in OPTIONAL_FILES:
            fetch_optional(file)
    except CheckpointError:
        raise
    except Exception as error:  # huggingface_hub's own types, requests' and the system's
        raise CheckpointError(explain(error, hub, source, repository)) from error
    return folder


def shards_of(index, source):
    """The files that an index names. Raises CheckpointError if there is no index."""
    if index is None:
        raise CheckpointError(no_safetensors(source, source))
    return sorted(set(map(str, read_weight_map(index).values())))


def read_weight_map(index):
    """{tensor name: shard} of an index, as it stands there. Raises CheckpointError."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index} has no weight_map")
    return weight_map


def no_safetensors(place, source):
    """What to do with a model that has pytorch_model.bin, a pickle, instead of safetensors."""
    convert = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        f"M.from_pretrained('{source}').save_pretrained('hf'); "
        f"T.from_pretrained('{source}').save_pretrained('hf')"
    )
    return (
        f"{place} has no {WEIGHTS}, and pickles such as pytorch_model.bin are never loaded. If you "
        f'trust it, convert it: python -c "{convert}", then --init_from=hf'
    )


def explain(error, hub, source, repository):
    """Why a download failed, and what to do."""
    if isinstance(error, hub.errors.GatedRepoError):
        return (
            f"{repository} is gated: accept its licence at https://huggingface.co/{repository}, "
            "then log in: hf auth login"
        )
    if isinstance(error, hub.errors.RevisionNotFoundError):
        return f"{source}: {repository} has no such revision on the hub"
    if isinstance(error, hub.errors.RepositoryNotFoundError):
        return (
            f"there is no file or folder {source}, and the Hugging Face hub has no model of that "
            "name, or a private one: then log in with hf auth login"
        )
    reason = f"{type(error).__name__}: {error}".partition("\n")[0].partition(". ")[0]
    return (
        f"cannot download {repository} from the Hugging Face hub ({reason}). Connect to the "
        "network, or get its files another way and give their folder instead of the name"
    )


def download_file(hub, repository, revision, file):
    """The path of a file in huggingface_hub's cache. Raises ValueError if something else arrives.

    huggingface_hub retries, lets a second process wait, and compares sizes. It does not compare the
    sha256, by which it names every large file, and never removes what a killed process had
    downloaded of it.
    """
    cached = hub.try_to_load_from_cache(repository, file, revision=revision)
    path = Path(hub.hf_hub_download(repository, file, revision=revision))
    if isinstance(cached, str):
        return path
    blob = path.resolve()
    for abandoned in blob.parent.glob(f"{blob.name}.*.incomplete"):
        abandoned.unlink(missing_ok=True)
    is_named_by_sha256 = len(blob.name) == 64
    if is_named_by_sha256 and (found := file_sha256(blob)) != blob.name:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise ValueError(f"{file} arrived with sha256 {found}, expected {blob.name}")
    return path
