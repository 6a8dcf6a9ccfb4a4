"""All methods."""

from rsdiff.data.degradation import DegradationConfig
from rsdiff.methods.adversarial import Adversarial, AdversarialConfig
from rsdiff.methods.base import Method
from rsdiff.methods.diffusion import Diffusion, DiffusionConfig
from rsdiff.methods.distillation import Distillation, DistillationConfig
from rsdiff.methods.regression import Regression, RegressionConfig

# each has the properties fields, channels, upscale, stride and timesteps, by which the other settings of a run are checked,
# and `generator`, which says whose parameters it can start from
MethodConfig = DiffusionConfig | RegressionConfig | AdversarialConfig | DistillationConfig
DEFAULT = DiffusionConfig()


def make_method(config: MethodConfig, degradation: DegradationConfig = DegradationConfig()) -> Method:
    """The method that `config` describes."""
    kinds = {
        DiffusionConfig: Diffusion,
        RegressionConfig: Regression,
        AdversarialConfig: Adversarial,
        DistillationConfig: Distillation,
    }
    return kinds[type(config)](config, degradation)
