"""The training loop, its tasks, schedules, callbacks, loggers and checkpoints."""

from cifarkit.training import schedules
from cifarkit.training.averaging import ExponentialMovingAverage, StochasticWeightAveraging
from cifarkit.training.batchnorm import refresh_batchnorm
from cifarkit.training.callbacks import Callback, EarlyStopping, LearningRateMonitor, TimeLimit
from cifarkit.training.checkpoint import ModelCheckpoint, load_checkpoint, load_weights, save_weights
from cifarkit.training.estimate import estimate_seconds
from cifarkit.training.health import GANHealth
from cifarkit.training.loading import own_part
from cifarkit.training.loggers import CSVLogger, Logger, run_folder
from cifarkit.training.lr_finder import LearningRateSweep, lr_find
from cifarkit.training.meters import NonFiniteLossError
from cifarkit.training.muon import Muon, muon_groups
from cifarkit.training.planning import plan_updates
from cifarkit.training.run import Run
from cifarkit.training.samples import SampleGrid
from cifarkit.training.task import Task, Update, freeze, unfreeze
from cifarkit.training.tasks.classification import ClassificationTask
from cifarkit.training.tasks.diffusion import DiffusionTask
from cifarkit.training.tasks.gan import GANTask
from cifarkit.training.tasks.gan_augment import DifferentiableAugmentation
from cifarkit.training.tasks.selective import SelectiveTask
from cifarkit.training.trackers import TensorBoardLogger, WandbLogger
from cifarkit.training.trainer import Trainer

__all__ = [
    "CSVLogger",
    "Callback",
    "ClassificationTask",
    "DifferentiableAugmentation",
    "DiffusionTask",
    "EarlyStopping",
    "ExponentialMovingAverage",
    "GANHealth",
    "GANTask",
    "LearningRateMonitor",
    "LearningRateSweep",
    "Logger",
    "ModelCheckpoint",
    "Muon",
    "NonFiniteLossError",
    "Run",
    "SampleGrid",
    "SelectiveTask",
    "StochasticWeightAveraging",
    "Task",
    "TensorBoardLogger",
    "TimeLimit",
    "Trainer",
    "Update",
    "WandbLogger",
    "estimate_seconds",
    "freeze",
    "load_checkpoint",
    "load_weights",
    "lr_find",
    "muon_groups",
    "own_part",
    "plan_updates",
    "refresh_batchnorm",
    "run_folder",
    "save_weights",
    "schedules",
    "unfreeze",
]
