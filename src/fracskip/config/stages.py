"""What each stage of a training does, and whom it learns from, as typed, frozen values."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from fracskip.config.network import Count, Fraction, Frozen, NonNegative, Positive, Probability


class OptimConfig(Frozen):
    """SGD with Nesterov momentum and a learning rate schedule.

    Attributes:
        lr: The highest learning rate.
        momentum: Of the weights' update.
        weight_decay: For convolutions and linear layers; norms, steps and gates are exempt.
        schedule: 'cosine' to zero, 'onecycle' (linear up, then linear down to zero), or 'step'
            (a tenth at 1/2 and again at 3/4: the paper's).
        warmup: Share of the stage spent rising linearly to `lr`.
        label_smoothing: Of the cross-entropy.
        clip_norm: Largest norm of the weights' gradient (0: not clipped).
    """

    lr: Positive = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegative = 1e-4
    schedule: Literal["cosine", "onecycle", "step"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: NonNegative = 0.0


class BackboneStage(Frozen):
    """Stage 1: the full-precision backbone, trained or loaded.

    Attributes:
        load: A safetensors file with torchvision's parameter names, or '' to train from scratch.
        epochs: Training epochs (0 with `load`: take it as it is).
        stochastic_depth: Largest rate at which blocks are left out of a step (0: none is). The
            first block and projections never are, and what is executed is not scaled up: a
            dynamic network will not scale it either.
        depth_sampling: Which blocks: 'stochastic' (each on its own, with a probability that rises
            from 0 at the first block to the rate at the last: stochastic depth, Huang et al., ECCV
            2016) or 'elastic' (a share drawn between 0 and the rate, of the blocks to which the
            network is least sensitive, so that shallow networks lie in deep ones: elastic depth,
            Cai et al., "Once-for-All", ICLR 2020; needs `load`).
        distillation: Weight of the divergence from the teacher's predictions, the cross-entropy
            keeping the rest (0: no teacher).
        distillation_temperature: Softens both predictions.
        optim: The optimiser.
    """

    load: str = ""
    epochs: Count = 0
    stochastic_depth: Annotated[float, Field(ge=0, lt=1)] = 0.0
    depth_sampling: Literal["stochastic", "elastic"] = "stochastic"
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.0
    distillation_temperature: Positive = 2.0
    optim: OptimConfig = OptimConfig(lr=0.2, weight_decay=5e-4, schedule="onecycle", warmup=0.25)

    @model_validator(mode="after")
    def _sensitivity_is_measured_on_a_trained_network(self) -> BackboneStage:
        if self.depth_sampling == "elastic" and not self.load:
            raise ValueError(
                "depth_sampling 'elastic' needs a trained backbone in load: an untrained one is "
                "sensitive to nothing; use 'stochastic'"
            )
        return self


class TeacherConfig(Frozen):
    """Whom the network learns from in the stages whose `distillation` is above 0.

    Attributes:
        load: A plain network's weights or checkpoint; '' is the run's own backbone, frozen as the
            stage found it.
        model: The teacher's model where `load` is given; '' is the run's.
    """

    load: str = ""
    model: str = ""


class SupernetStage(Frozen):
    """Stage 2: weights of all options, in allocations drawn at random, before gates are trained.

    BatchNorm statistics stand still, as in the joint stage.

    Attributes:
        epochs: Training epochs (0: options are only calibrated, and learn in the joint stage).
        skip_rate: Largest share of blocks that a step skips.
        uniform_rate: Share of steps in which all blocks execute one option, as in a static network.
        low_focus: Exponent of the drawn level: above 1, cheap options are drawn more often, for
            they are further from the backbone and have more to learn.
        optim: The optimiser.
        distillation: Weight of the divergence from the teacher's predictions (0: no teacher).
        distillation_temperature: Softens both predictions.
    """

    epochs: Count = 0
    skip_rate: Annotated[float, Field(ge=0, lt=1)] = 0.3
    uniform_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    low_focus: Positive = 1.0
    optim: OptimConfig = OptimConfig(lr=3e-3, schedule="cosine", warmup=0.05, clip_norm=1.0)
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.0
    distillation_temperature: Positive = 2.0


class GateStage(Frozen):
    """Stage 3: gates alone, around one option that they choose at first.

    Attributes:
        epochs: Passes over the training set; forward only, so each costs about a third of one. With
            0 only the gates' output bias is set: decisions then differ from image to image at once
            (after `start`, gates stay as they are).
        option: The option they learn to choose, from whose cost the joint stage descends; '' is
            the most precise.
        label: What they learn: 'option' (that option everywhere) or 'sensitivity' (how much each
            image's prediction changes where one block executes less: blocks to which predictions
            are not sensitive execute less first).
        allocation: What the other blocks execute while sensitivity is measured in one: 'option'
            (that option), or 'chosen' (what the gates choose for most images at the cost that they
            approach, from the option's to `joint.target`: what a block adds depends on which others
            are there).
        confidence: The probability that the gates learn to give it. Below 1 so that the softmax
            is not saturated when the joint stage begins.
        cutout: Side, in pixels, of a square that is blanked in each image (DeVries and Taylor,
            2017) for gates that learn sensitivities (`gate.output`): a network that knows its
            training images by heart then gets some that it cannot be sure of, as it will.
        shrinkage: How far head outputs may be shrunk towards their mean over images, as shares:
            validation images choose among these once gates are trained; () shrinks nothing.
        block_shrinkage: Likewise towards their mean over blocks: sensitivity that is measured in
            one block overrates it once many execute less.
        lr: Of Adam.
    """

    epochs: Count = 1
    option: Annotated[str, BeforeValidator(str)] = ""
    label: Literal["option", "sensitivity"] = "option"
    allocation: Literal["option", "chosen"] = "option"
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.8
    cutout: Count = 0
    shrinkage: tuple[Probability, ...] = ()
    block_shrinkage: tuple[Probability, ...] = ()
    lr: Positive = 3e-3


class JointStage(Frozen):
    """Stage 4: weights and gates together, towards a computation percentage.

    BatchNorm statistics stand still here, so the learning rate must be about a tenth of what the
    backbone's own fine-tuning would take: 0.02 diverges within ten steps, 0.003 is stable.

    Attributes:
        epochs: Training epochs.
        target: The computation percentage to reach, as a share (0.05 is 5%).
        optim: The weights' optimiser; its schedule also drives the gates' learning rate.
        allocation: Of each 'image' (every one takes its own) or of the 'batch' (all its images take
            that of one of them, drawn at random: nothing is grouped, so a step costs what its
            blocks cost; only the weights learn, and gates, price and exploration have no part in
            it).
        aim: With one allocation a batch: what its cost aims at, 'target', or 'budgets' (at every
            step another one between the least and the largest of them, even in log cost: one
            training for all).
        decisions: 'dynamic' (by image) or 'static' (as the stage begins, each block is fixed at
            what the gates choose for the mean image at the target: a static allocation of mixed
            precision, to compare with; needs `gate_lr` 0).
        gate_lr: Highest learning rate of the gates (Adam). With 0 they stay as their own stage left
            them, and only 'balance' moves their decisions, by its multiplier of cost.
        objective: 'price' (of cost in the loss, raised while the cost is above target), 'balance'
            (the multiplier of cost in the decisions holds the cost at the target, and the price is
            the one at which the gates have no drift to more or less computation) or 'paper' (the
            sign of the error times `beta`).
        price_rate: How fast the price follows the error ('balance': the drift), per step.
        multiplier_rate: How fast the multiplier of 'balance' answers an error, per step.
        distillation: Weight of the divergence from the teacher's predictions, the cross-entropy
            keeping the rest (0: no teacher). Costs a third of a backbone step.
        distillation_temperature: Softens both predictions.
        diversity: Weight of a reward on what decisions tell of their image (the mutual
            information, averaged over blocks; 0: none).
        beta: The paper's factor, for a batch of 128 images.
        descent: Share of the stage in which the target falls from the cost of `gates.option` to
            `target`.
        exploration: Scale of the Gumbel noise on the gates' logits; it falls to zero.
        exploration_until: Share of the stage after which there is no noise.
        temperature: Of the softmax that carries the gates' gradient. Decisions do not depend on it;
            above 1 it keeps options in reach that the gates have all but ruled out.
        gate_gradient: 'sampled' (options not chosen are tried on a few images: an unbiased
            estimate) or 'dense' (every option for every image: the paper's way, about K times
            the cost).
        sample_rate: Share of images on which 'sampled' tries another option.
        uniform_rate: Share of each batch (with one allocation a batch: share of steps) whose blocks
            all execute one option, drawn anew each step: keeps options that the gates have left
            able to compute (and to be compared).
        budgets: Costs for which the multiplier is searched once all is trained, so that callers
            may name any budget between the least and the largest of them.
        members: How many a cascade may have: 1, or 2 (where a first one, for less than the
            budget, leaves the prediction uncertain, the image is escalated to a second; needs
            `budgets`, and validation images that the backbone has not learned).
        norm_images: Training images on which, once all is trained, BatchNorm statistics are
            estimated anew in the allocations that the gates choose (0: they stay as they are).
    """

    epochs: Count = 10
    target: Fraction = 0.05
    optim: OptimConfig = OptimConfig(lr=3e-3, schedule="cosine", warmup=0.05, clip_norm=1.0)
    allocation: Literal["image", "batch"] = "image"
    aim: Literal["target", "budgets"] = "target"
    decisions: Literal["dynamic", "static"] = "dynamic"
    gate_lr: NonNegative = 2e-3
    objective: Literal["price", "balance", "paper"] = "price"
    price_rate: Positive = 0.01
    multiplier_rate: Positive = 0.5
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.0
    distillation_temperature: Positive = 2.0
    diversity: NonNegative = 0.0
    beta: Positive = 1e-5
    descent: Annotated[float, Field(ge=0, lt=1)] = 0.3
    exploration: NonNegative = 1.0
    exploration_until: Fraction = 0.6
    temperature: Positive = 3.0
    gate_gradient: Literal["sampled", "dense"] = "sampled"
    sample_rate: Fraction = 0.25
    uniform_rate: Annotated[float, Field(ge=0, lt=1)] = 0.125
    budgets: tuple[Fraction, ...] = ()
    members: Literal[1, 2] = 1
    norm_images: Count = 1536

    @model_validator(mode="after")
    def _keys_go_together(self) -> JointStage:
        if self.allocation == "batch" and self.gate_lr:
            raise ValueError("allocation 'batch' teaches the gates nothing: set gate_lr to 0")
        if self.aim == "budgets" and (self.allocation != "batch" or len(self.budgets) < 2):
            raise ValueError("aim 'budgets' needs allocation 'batch' and two budgets at least")
        if self.members == 2 and not (
            len(self.budgets) > 1 and min(self.budgets) <= self.target <= max(self.budgets)
        ):
            raise ValueError(
                "members = 2 needs budgets around the target, two at least: members' budgets lie "
                "between the smallest and the largest of them"
            )
        if self.decisions == "static" and (self.gate_lr or self.budgets):
            raise ValueError(
                "decisions 'static' leave the gates nothing to learn and no budget to follow: set "
                "gate_lr to 0 and budgets to []"
            )
        return self
