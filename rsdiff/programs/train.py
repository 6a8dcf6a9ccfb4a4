"""Trains a generator: python train.py --config configs/demo.py --workdir runs/demo --config.batch_size=32

Run the same command again to continue. The last line is one JSON object, also written to WORKDIR/train.json. On several
hosts run the same command on each; `rsdiff/training/hosts.py` lists the environment variables that connect them.
"""

from absl import flags
from etils import epath

from rsdiff.base.errors import BadInput
from rsdiff.evaluation.paired import paired_measures
from rsdiff.programs import console
from rsdiff.training import hosts
from rsdiff.training.config import TrainConfig, from_dict
from rsdiff.training.loop import train

FLAGS = flags.FLAGS
console.define_config('A config file, or the name of one in configs/.')
flags.DEFINE_string('workdir', None, 'Output folder for checkpoints, metrics and samples.')
flags.DEFINE_bool('allow_config_change', False, 'Continue a run even if its settings differ.')


def main() -> None:
    if FLAGS.config is None or FLAGS.workdir is None:
        raise BadInput('give --config FILE or NAME and --workdir DIR')
    config = from_dict(TrainConfig, FLAGS.config.to_dict())
    console.enable_compilation_cache()
    hosts.connect()
    summary = train(config, FLAGS.workdir, FLAGS.allow_config_change, judge=paired_measures(config.validation.measures))
    if hosts.is_first():
        console.finish(summary, epath.Path(FLAGS.workdir) / 'train.json')


def run() -> None:
    """The command."""
    console.run(main)


if __name__ == '__main__':
    run()
