"""Claiming folders: of concurrent processes, those with the same settings continue and the others stop."""

import concurrent.futures
import json
import multiprocessing
import time

import pytest

from rsdiff.base.errors import BadInput
from rsdiff.base.folders import FolderLock, claim_folder


def claim(folder, seed, begin):
    time.sleep(max(0, begin - time.time()))
    try:
        claim_folder(folder, {'seed': seed, 'size': [16, 16]})
    except BadInput as error:
        return str(error)
    (folder / f'output{seed}.png').write_bytes(b'')  # the output written right after a claim
    return None


def test_of_many_processes_at_once_those_with_the_same_settings_share_a_folder(tmp_path):
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(8, mp_context=context) as pool:
        list(pool.map(claim, [tmp_path / f'warm{n}' for n in range(8)], range(8), [0] * 8))
        for attempt in range(5):
            folder, begin = tmp_path / str(attempt), time.time() + 0.3
            answers = list(pool.map(claim, [folder] * 8, [0, 1] * 4, [begin] * 8))
            winner = json.loads((folder / 'settings.json').read_text())['seed']
            for number, answer in enumerate(answers):
                assert answer is None if number % 2 == winner else f'seed {winner} → {1 - winner}' in answer


@pytest.mark.parametrize('content', [b'', b'{"seed": 0', b'[1]', b'\xff', b'7', b'{"seed": NaN}', b'[' * 10_000])
def test_spoilt_settings_are_bad_input(tmp_path, content):
    (tmp_path / 'settings.json').write_bytes(content)
    with pytest.raises(BadInput, match='settings.json') as raised:
        claim_folder(tmp_path, {'seed': 0})
    assert '\n' not in str(raised.value)


def test_a_folder_is_one_processes_at_a_time(tmp_path):
    first, second = FolderLock(tmp_path / 'out'), FolderLock(tmp_path / 'out')
    first.acquire()
    with pytest.raises(BadInput, match='in use'):
        second.acquire()
    first.release()
    second.acquire()
