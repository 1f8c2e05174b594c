"""What a model can do."""

from __future__ import annotations

from collections.abc import Iterable

from text2image.core.messages import (
    SIDE_MULTIPLE,
    ControlInfo,
    Embedding,
    Input,
    LoraInfo,
    ModelInfo,
    PromptSyntax,
    Quality,
    Sampler,
    Schedule,
    UpscalerInfo,
)
from text2image.v1 import image_generation_pb2 as pb

# Of a model: names that a later version may know more of, limits by such a name, and what is a message of its own.
_NAMES = {
    "sampler",
    "samplers",
    "schedules",
    "max_steps",
    "quality",
    "embeddings",
    "prompt_syntax",
    "inputs",
    "loras",
    "controls",
    "upscalers",
}


def model_to(model: ModelInfo) -> pb.GetModelResponse:
    return pb.GetModelResponse(
        **{
            field.name: getattr(model, field.name)
            for field in pb.GetModelResponse.DESCRIPTOR.fields
            if field.name not in _NAMES
        },
        sampler=model.sampler.value,
        samplers=[sampler.value for sampler in model.samplers],
        schedules=[schedule.value for schedule in model.schedules],
        max_steps={sampler.value: steps for sampler, steps in model.max_steps},
        quality=model.quality.value,
        loras=[
            pb.LoraInfo(
                name=each.name,
                hash=each.hash,
                base=each.base,
                trigger_words=each.trigger_words,
                fault=each.fault,
            )
            for each in model.loras
        ],
        controls=[
            pb.ControlInfo(name=each.name, hash=each.hash, base=each.base, fault=each.fault)
            for each in model.controls
        ],
        upscalers=[
            pb.UpscalerInfo(name=each.name, hash=each.hash, scale=each.scale, tile=each.tile)
            for each in model.upscalers
        ],
        inputs=[each.value for each in model.inputs],
        embeddings=[
            pb.Embedding(name=each.name, hash=each.hash, vectors=each.vectors)
            for each in model.embeddings
        ],
        prompt_syntax=model.prompt_syntax.value,
    )


def model_from(message: pb.GetModelResponse) -> ModelInfo:
    values = {
        field.name: getattr(message, field.name) for field in pb.GetModelResponse.DESCRIPTOR.fields
    }
    values["sampler"] = Sampler.named(message.sampler)
    values["samplers"] = tuple(Sampler.named(name) for name in message.samplers)
    values["schedules"] = tuple(Schedule.named(name) for name in message.schedules)
    values["max_steps"] = tuple(
        (Sampler.named(name), steps) for name, steps in sorted(message.max_steps.items())
    )
    # A runner of an earlier version draws exactly, and does not say so.
    values["quality"] = Quality.named(message.quality or Quality.EXACT)
    # And one of before they were told draws from a text alone.
    values["inputs"] = tuple(map(Input.named, message.inputs)) or (Input.TEXT,)
    values["aliases"] = tuple(message.aliases)
    values["embeddings"] = tuple(
        Embedding(each.name, each.hash, each.vectors) for each in message.embeddings
    )
    # One of before there was a choice reads prompts as they stand.
    values["prompt_syntax"] = PromptSyntax.named(message.prompt_syntax or PromptSyntax.PLAIN)
    values["price"] = message.price or 1.0
    # One of before this was told draws multiples of 8.
    values["side_multiple"] = message.side_multiple or SIDE_MULTIPLE
    values["loras"] = tuple(
        LoraInfo(each.name, each.hash, each.base, tuple(each.trigger_words), each.fault)
        for each in message.loras
    )
    values["controls"] = tuple(
        ControlInfo(each.name, each.hash, each.base, each.fault) for each in message.controls
    )
    values["upscalers"] = tuple(
        UpscalerInfo(each.name, each.hash, each.scale, each.tile) for each in message.upscalers
    )
    return ModelInfo(**values)


def models_to(models: Iterable[ModelInfo]) -> pb.ListModelsResponse:
    return pb.ListModelsResponse(models=[model_to(model) for model in models])


def models_from(message: pb.ListModelsResponse) -> list[ModelInfo]:
    return [model_from(model) for model in message.models]
