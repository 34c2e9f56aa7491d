"""The training loop, its tasks, schedules, callbacks, loggers and checkpoints."""

from cifarkit.training import schedules
from cifarkit.training.averaging import ExponentialMovingAverage, StochasticWeightAveraging, refresh_batchnorm
from cifarkit.training.callbacks import Callback, EarlyStopping, LearningRateMonitor, TimeLimit
from cifarkit.training.checkpoint import ModelCheckpoint, load_checkpoint, load_weights, save_weights
from cifarkit.training.estimate import estimate_seconds
from cifarkit.training.loggers import CSVLogger, Logger, run_folder
from cifarkit.training.lr_finder import LearningRateSweep, lr_find
from cifarkit.training.meters import NonFiniteLossError
from cifarkit.training.muon import Muon, muon_groups
from cifarkit.training.run import Run
from cifarkit.training.task import Task, Update, freeze, unfreeze
from cifarkit.training.tasks.classification import ClassificationTask
from cifarkit.training.tasks.selective import SelectiveTask
from cifarkit.training.trackers import TensorBoardLogger, WandbLogger
from cifarkit.training.trainer import Trainer

__all__ = [
    "CSVLogger",
    "Callback",
    "ClassificationTask",
    "EarlyStopping",
    "ExponentialMovingAverage",
    "LearningRateMonitor",
    "LearningRateSweep",
    "Logger",
    "ModelCheckpoint",
    "Muon",
    "NonFiniteLossError",
    "Run",
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
    "refresh_batchnorm",
    "run_folder",
    "save_weights",
    "schedules",
    "unfreeze",
]
