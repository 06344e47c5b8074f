"""The options of the training program, by topic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

# True, False, or what the preset and the machine say.
Whiten = Annotated[bool | None, tyro.conf.arg(metavar="| --no-whiten")]
Flip = Annotated[bool | None, tyro.conf.arg(metavar="| --no-flip")]
AlternateFlips = Annotated[bool | None, tyro.conf.arg(metavar="| --no-alternate-flips")]
Amp = Annotated[bool | None, tyro.conf.arg(metavar="| --no-amp")]


def with_values(arguments: Sequence[str]) -> list[str]:
    """``arguments`` with --amp=True for --amp, and so on.

    tyro makes flags of what is either true or false, but not of what may also be None.
    """
    values = {}
    for name in ("--whiten", "--flip", "--alternate-flips", "--amp"):
        values[name], values[name.replace("--", "--no-", 1)] = f"{name}=True", f"{name}=False"
    return [values.get(argument, argument) for argument in arguments]


@dataclass
class Network:
    """What is trained."""

    fused: bool = False
    """One kernel for each convolution with its ReLU and pooling, instead of torch's own layers."""

    preset: Literal["auto", "seed", "small", "fast", "record"] = "auto"
    """auto: "seed" on a GPU, "record" on CPU, where the seed network would take hours."""

    arch: str | None = None
    """Convolutions x channels of each block, before --width multiplies them: 1x64,1x128,2x256."""

    width: float | None = None
    """Multiplies the channels of every block."""

    image_size: int | None = None
    """Height and width to which the images are resized."""

    classifier_width: int | None = None
    """Outputs of the two hidden linear layers."""

    dropout: float | None = None
    """Probability of dropping a value after each hidden linear layer."""

    batch_norm: bool = False
    """A batch norm between each convolution and its ReLU."""

    whiten: Whiten = None
    """Let the first convolution begin with filters that whiten the training images: their 3 x 3
    patches come out of it uncorrelated, and of equal variance."""

    init: Path | None = None
    """Start from the convolutions in this file: a state_dict of torchvision's VGG of the same
    --arch and --width, such as vgg16-397923af.pth. The classifier is new; images are normalised as
    ImageNet's were; for grey ones, the first layer's weights are summed over the colours."""

    freeze_features: bool = False
    """Train the classifier alone: the convolutions stay as they are, and so does what their batch
    norms have counted."""


@dataclass
class Learning:
    """How it is trained."""

    epochs: int | None = None
    """Passes over the training images."""

    steps: int | None = None
    """Stop after this many optimizer steps, and test on as many batches: a trial run."""

    target: float | None = None
    """Stop after the first epoch with this test accuracy, such as 0.92."""

    batch_size: int | None = None
    """Images in one optimizer step, over all processes."""

    accumulate: int = 1
    """Passes into which a step's batch is cut, one after the other: less memory. With --batch-norm,
    each has the statistics of its own images."""

    optimizer: Literal["sgd", "adamw", "muon"] | None = None
    """SGD with momentum; AdamW; or Muon, which learns in the fewest epochs."""

    lr: float | None = None
    """The schedule's highest learning rate; by default the preset's for the optimizer."""

    schedule: Literal["one-cycle", "cosine", "triangle", "constant"] | None = None
    """How the learning rate falls behind the warm-up: along a cosine to almost nothing (one-cycle),
    along a cosine to zero, straight to zero (triangle), or not at all."""

    warm_up: float | None = None
    """Share of the steps in which the learning rate rises; 0.25 with one-cycle, else 0.05."""

    momentum: float = 0.9
    """SGD's and Muon's momentum, in Nesterov's form; AdamW's first beta."""

    weight_decay: float | None = None
    """The optimizer's weight decay; 5e-4 with sgd, 0.01 with adamw, 0.1 with muon."""

    label_smoothing: float | None = None
    """The share of every label that is spread over all classes, in training; the training loss is
    then that of such labels."""

    clip: float | None = None
    """Scale gradients down to this norm, taken over all parameters."""

    ema: float | None = None
    """Test, and save as the result, an average of the weights that keeps this share of itself at
    each step, such as 0.999."""

    seed: int = 0
    """Seeds the initial weights, the order of the images, their augmentation, and dropout."""

    seeds: int = 1
    """Train this many times, with the seeds from --seed on, each in a folder of its own; the mean
    and spread come last."""


@dataclass
class Images:
    """What it learns from."""

    dataset: Literal[
        "fashion-mnist",
        "mnist",
        "kmnist",
        "emnist",
        "cifar10",
        "cifar100",
        "folder",
        "synthetic",
    ] = "fashion-mnist"
    """folder: pictures of your own, a folder for each class. emnist: its 47 classes "balanced".
    synthetic: invented images, to try the program without data."""

    data_root: Path | None = None
    """The folder with the data set's files, as torchvision lays them out, or with a folder for each
    class. Fashion-MNIST's are searched for, and downloaded, if it isn't given."""

    channels: Literal[1, 3] | None = None
    """Of --dataset folder: pictures in grey, or in colour, as by default."""

    test_share: float = 0.1
    """Of --dataset folder: the share of each class that is tested on, where the folder itself isn't
    divided into train and val or test."""

    broken_images: Literal["refuse", "skip"] = "refuse"
    """Of --dataset folder: what becomes of files that can't be decoded."""

    augment: bool = False
    """Flip and shift the training images at random: --flip --crop 2."""

    flip: Flip = None
    """Flip each training image or not, at random."""

    alternate_flips: AlternateFlips = None
    """With --flip: every image in the first epoch at random, and the other way round in every
    second epoch."""

    crop: int | None = None
    """Shift each training image by up to so many of its pixels either way, at random, before it is
    resized."""

    crop_border: Literal["zeros", "reflect"] | None = None
    """What a shifted image shows of what lay outside: black, or its own border reflected."""

    erase: float = 0.0
    """Probability of erasing a rectangle of a training image: 2 to 33 % of it become the mean."""

    average_views: bool = False
    """Also test with the mean over six views of each image: as it is, and shifted by a pixel
    up-left and down-right, each flipped too. Reported apart, as test_accuracy_averaged."""


@dataclass
class Machine:
    """What it runs on."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N. auto takes a GPU if there is one. Under torchrun, cuda is another
    GPU for each process."""

    threads: int | None = None
    """CPU threads of each process; torch's default if not given, and under torchrun an equal share
    of the machine's cores."""

    backend: Literal["auto", "cpp", "triton", "reference"] = "auto"
    """Which kernels run the fused layers."""

    amp: Amp = None
    """Automatic mixed precision; by default only on a GPU."""

    amp_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    """The dtype of mixed precision; float16 comes with loss scaling."""

    compile: bool = False
    """Train through torch.compile."""

    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
    """The mode of torch.compile."""

    channels_last: bool = True
    """Pass the images on in channels_last."""

    fsdp: bool = False
    """Under torchrun: parameters, gradients and momentum are cut over the processes, for networks
    that one of them can't hold."""


@dataclass
class Files:
    """What it leaves behind."""

    output_dir: Path | None = None
    """Where the results go: runs/<preset>-<fused or plain> if not given, with a number if that
    exists. Only one run at a time can write into a folder."""

    save_every: float = 5.0
    """Also save the state after this many minutes within an epoch: a killed run loses no more."""

    resume: Path | None = None
    """A checkpoint, or the folder of a run: continue from there, with that run's options. Other
    options on the command line replace them, or are refused where the run depends on them. --steps
    and --profile apply to one run only."""

    tensorboard: bool = False
    """Also write the curves for TensorBoard, into the folder's tensorboard/; needs its package."""

    wandb: bool = False
    """Also send the curves to Weights & Biases; needs its package and an account."""

    profile: int | None = None
    """Write a trace of so many training steps, after the first five and within one epoch, and a
    table of the time by operator."""


# Fields come from the last base first, and so do they in the help text.
@dataclass
class Config(Files, Machine, Images, Learning, Network):
    """Train a VGG network on Fashion-MNIST, or on pictures of your own.

    Presets: "seed" is the seed network at 224 x 224; "small" has a quarter of its channels; "fast"
    has a quarter of its channels, 32 x 32 images and a classifier of 512; "record" is the network
    and the recipe that docs/record.md is about. What is None by default is left to the preset.
    """
