"""Checkpoints by name: a local folder, or a repository on the Hugging Face hub."""

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from rsdiff.base.errors import BadInput, one_line

# The files to download from a repository: no pickled weights, and no copies of the weights for other frameworks.
FILES = ['*.safetensors', '*.json', 'merges.txt', 'spiece.model', 'tokenizer.model']
OTHERS = ['*/*', 'open_clip*']
HUB_NAME = re.compile(r'[\w.-]+/[\w.-]+')


def folder_of(name: Path | str) -> Path:
    """The local folder `name`, or the folder of the hub repository `name` (`openai/clip-vit-base-patch32`) in the hub's
    cache, downloaded if necessary.

    Raises:
      BadInput: `name` is neither, or can't be downloaded.
    """
    if Path(name).is_dir():
        return Path(name)
    if not HUB_NAME.fullmatch(str(name)):
        raise BadInput(
            f'{name}: neither a folder, nor a name on the Hugging Face hub such as openai/clip-vit-base-patch32'
        )
    try:
        return Path(huggingface_hub.snapshot_download(str(name), allow_patterns=FILES, ignore_patterns=OTHERS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = one_line(error)
        raise BadInput(
            f'{name}: no such folder, and the download from the Hugging Face hub failed '
            f'({type(error).__name__}: {reason[:120]}); on a machine with network access, run '
            f'`hf download {name} --local-dir FOLDER`, then give FOLDER'
        ) from None
