"""Checkpoints by name: a folder here, or a repository of the Hugging Face hub."""

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from rsdiff.base.errors import BadInput, one_line

# What is read of a repository. Pickled weights, and the same weights for other programs, are not even downloaded.
FILES = ['*.safetensors', '*.json', 'merges.txt', 'spiece.model', 'tokenizer.model']
OTHERS = ['*/*', 'open_clip*']
HUB_NAME = re.compile(r'[\w.-]+/[\w.-]+')


def folder_of(name: Path | str) -> Path:
    """The folder `name`, or that of the hub's repository `name` (`openai/clip-vit-base-patch32`) in the hub's cache,
    downloaded if it is not there.

    Raises:
      BadInput: it is neither, or can't be downloaded.
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
            f'{name}: no folder of that name, and not to be had from the Hugging Face hub '
            f'({type(error).__name__}: {reason[:120]}); where there is a network, '
            f'`hf download {name} --local-dir FOLDER`, then give FOLDER'
        ) from None
