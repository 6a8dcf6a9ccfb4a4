"""Statistics read from HLO that a TPU compiler has optimised and, if libtpu is installed, from a compiled program."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# lines as libtpu writes them, without layouts and metadata
HLO = """HloModule jit_step, num_partitions=4

%all-reduce-scatter.3 (input.1: f32[1024]) -> f32[256] {
  %all-reduce.9 = f32[1024]{0:T(1024)} all-reduce(%input.1), channel_id=2, replica_groups=[1,4]<=[4]
  ROOT %dynamic-slice.1 = f32[256]{0:T(256)} dynamic-slice(%all-reduce.9, %start), dynamic_slice_sizes={256}
}

ENTRY %main (param: bf16[64,32]) -> f32[] {
  %all-gather-start.1 = (bf16[64,32]{1,0}, bf16[256,32]{1,0}) all-gather-start(%param), channel_id=1
  %all-gather-done.1 = bf16[256,32]{1,0} all-gather-done(%all-gather-start.1)
  %all-reduce.1 = (f32[8]{0}, f32[]{:T(128)}) all-reduce(%a, %b), channel_id=3
  ROOT %all-reduce.2 = bf16[16]{0} all-reduce(%c), channel_id=4
  %fusion.1 = f32[256]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3
}

%fused.2 (param_0: bf16[64,32]) -> bf16[256,32] {
  ROOT %all-gather.7 = bf16[256,32]{1,0} all-gather(%param_0), channel_id=1, frontend_attributes={chain_id="0"}
}
"""


@pytest.fixture(scope='module')
def benchmark_aot():
    sys.path.insert(0, str(ROOT / 'tools'))
    try:
        yield importlib.import_module('benchmark_aot')
    finally:
        sys.path.remove(str(ROOT / 'tools'))


def test_collectives_are_counted_by_kind_and_bytes(benchmark_aot):
    found = benchmark_aot.collectives(HLO)
    assert found == {
        'reduce-scatter': {'count': 1, 'bytes': 4096, 'float32_bytes': 4096},
        'all-gather': {'count': 1, 'bytes': 256 * 32 * 2, 'float32_bytes': 0},
        'all-reduce': {'count': 2, 'bytes': 36 + 32, 'float32_bytes': 36},
    }


def test_an_estimate_is_of_the_published_peaks(benchmark_aot):
    chip = benchmark_aot.CHIPS['v5e']
    counted = {'flops': 197e12, 'bytes accessed': 2 * 819e9}
    found = {'all-reduce': {'bytes': 200e9}, 'all-gather': {'bytes': 400e9}}
    told = benchmark_aot.estimate(chip, 4, counted, found, 0.5 * 197e12, 8, 'bfloat16')
    assert told['seconds'] == pytest.approx({'compute': 1.0, 'memory': 2.0, 'links': (2 + 2) * 3 / 4})
    assert told['step_seconds'] == pytest.approx({'all_at_once': 3.0, 'one_after_the_other': 6.0})
    assert told['mfu']['all_at_once'] == pytest.approx(0.5 / 3) and told['images_per_second']['all_at_once'] == 8 / 3


def run(*arguments):
    return subprocess.run(
        [sys.executable, 'tools/benchmark.py', 'aot', '--config', 'demo', *arguments],
        cwd=ROOT,
        env={**os.environ, 'XLA_FLAGS': ''},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize('topology', ['v9:2x2', 'v5e', 'v5e:big'])
def test_a_topology_that_is_none_is_named(topology, tmp_path):
    done = run('--topology', topology, '--out', str(tmp_path / 'out.json'))
    assert done.returncode == 2 and topology in done.stderr and 'v5e' in done.stderr


def test_a_step_is_compiled_for_chips_that_are_not_there(tmp_path):
    pytest.importorskip('libtpu', reason="has the TPU's compiler; the `tpu` extra brings it")
    sizes = 'width=16', 'multipliers=(1,)', 'attention_levels=()', 'head_width=16', 'spatial.lr.features=8'
    small = [f'--config.method.model.{size}' for size in sizes]
    done = run('--topology', 'v5e:2x2', '--fsdp', '4', '--batch', '4', *small, '--out', str(tmp_path / 'out.json'))
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told['mesh'] == {'data': 1, 'fsdp': 4} and told['device_flop'] > 0
    assert told['device_bytes']['of'] > told['device_bytes']['total'] > told['device_bytes']['temporary'] > 0
