"""What `txt2img` and `img2img` of A1111's web UI are sent, and the same in our words.

Its fields are those of A1111 1.10, with what Forge, SD.Next and clients send besides. A field that is left out takes
the model's default, not that of A1111, whose pictures are of 512 x 512 pixels and 50 steps. Types are read as loosely
as it reads them: `"20"` is a number.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

from text2image.api import fields
from text2image.api.a1111 import controlnet, masks, refusals
from text2image.api.a1111.overrides import Named, Overrides
from text2image.api.forms import decoded
from text2image.core import validation
from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.formats import Encoding
from text2image.core.messages import SIDE_MULTIPLE, ModelInfo, RequestParams, StreamOptions
from text2image.core.samplers import is_own_schedule

# What A1111 takes where a picture begins from another one, or from a small one.
DENOISING_STRENGTH = 0.75
HIRES_SCALE = 2.0
# Any other seed below 0 is refused, as everywhere.
RANDOM_SEED = -1

_UNUSED = "Ignored."
_SIDE = fields.documented(
    description="Pixels, within the model's limits.", minimum=1, multipleOf=SIDE_MULTIPLE
)
_STRENGTH = {"minimum": 0, "maximum": 1}


def _only(*values: Any, description: str = "Nothing else is done here.") -> Any:
    """A field whose other values would change the picture in a way that is not done here."""
    return fields.documented(description=description, enum=[*values, None])


def _unused() -> Any:
    return Field(None, description=_UNUSED)


class Asked(BaseModel):
    """What both ways to draw have in common."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field(description="What to draw.", json_schema_extra=fields.PROMPT)
    negative_prompt: str | None = fields.NEGATIVE_PROMPT
    seed: int | None = fields.documented(
        description="Picture i is drawn from seed + i; -1 is a random one.",
        minimum=RANDOM_SEED,
        maximum=validation.MAX_SEED,
    )
    steps: int | None = fields.STEPS
    cfg_scale: float | None = fields.GUIDANCE_SCALE
    width: int | None = _SIDE
    height: int | None = _SIDE
    batch_size: int | None = fields.documented(
        description=f"Pictures, times `n_iter`; at most {validation.MAX_IMAGES} in all.",
        minimum=1,
        maximum=validation.MAX_IMAGES,
    )
    n_iter: int | None = fields.documented(minimum=1, maximum=validation.MAX_IMAGES)
    sampler_name: str | None = fields.SAMPLER
    sampler_index: str | None = Field(
        None, description="The same, where there is no `sampler_name`."
    )
    scheduler: str | None = fields.SCHEDULE
    denoising_strength: float | None = fields.documented(
        description=f"How much is to change of a picture that is there; {DENOISING_STRENGTH} if left out.",
        **_STRENGTH,
    )
    clip_skip: int | None = Field(
        None, description="As `CLIP_stop_at_last_layers` of `override_settings`."
    )
    override_settings: dict[str, Any] | None = Field(
        None,
        description="`sd_model_checkpoint`, `CLIP_stop_at_last_layers`, `samples_format`, `jpeg_quality`, "
        "`show_progress_every_n_steps`; others are refused, unless they change nothing.",
    )
    alwayson_scripts: dict[str, Any] | None = Field(
        None,
        description="`ControlNet`, whose units are `controls`; others are refused, unless they are switched off.",
    )
    force_task_id: str | None = Field(
        None,
        description="What to ask for its progress by.",
        json_schema_extra={"maxLength": refusals.MAX_TASK_ID},
    )
    send_images: bool | None = Field(None, description="Answer with the pictures.")
    quality: str | None = fields.QUALITY

    styles: list[str] | None = Field(
        None, description="There are none.", json_schema_extra={"maxItems": 0}
    )
    restore_faces: bool | None = _only(False)
    tiling: bool | None = _only(False)
    subseed: int | None = Field(None, description="Ignored without `subseed_strength`.")
    subseed_strength: float | None = _only(0)
    seed_resize_from_w: int | None = _only(-1, 0)
    seed_resize_from_h: int | None = _only(-1, 0)
    seed_enable_extras: bool | None = _unused()
    eta: float | None = Field(
        None, description="1 for samplers that add noise, 0 for DDIM; others have none."
    )
    s_churn: float | None = _only(0)
    s_min_uncond: float | None = _only(0)
    s_noise: float | None = _only(1)
    s_tmin: float | None = _unused()
    s_tmax: float | None = _unused()
    distilled_cfg_scale: float | None = _only(3.5)
    refiner_checkpoint: str | None = _only("", "None")
    refiner_switch_at: float | None = _unused()
    disable_extra_networks: bool | None = _only(False)
    infotext: str | None = _only("")
    script_name: str | None = _only("", "None")
    script_args: Any = _unused()

    override_settings_restore_afterwards: bool | None = _unused()
    save_images: bool | None = Field(
        None, description="Ignored: the server says what is saved (T2I_SAVE_IMAGES)."
    )
    do_not_save_samples: bool | None = _unused()
    do_not_save_grid: bool | None = _unused()
    comments: Any = _unused()
    url: Any = _unused()
    auth: Any = _unused()

    # What answers do not repeat, since it may be large or a secret.
    _NOT_TOLD: ClassVar[frozenset[str]] = frozenset(
        ("alwayson_scripts", "script_args", "comments", "url", "auth")
    )

    @property
    def overrides(self) -> Overrides:
        return Overrides(self.override_settings or {})

    @property
    def sampler(self) -> tuple[str, str | None]:
        """The field that names a sampler, and what it names."""
        if self.sampler_name or not self.sampler_index:
            return "sampler_name", self.sampler_name or None
        return "sampler_index", self.sampler_index

    @property
    def encoding(self) -> Encoding:
        """The form of the files."""
        return self.overrides.encoding

    @property
    def options(self) -> StreamOptions:
        """What to tell whoever asks how far it is. Previews cost work, so they are for those who can ask for them."""
        return StreamOptions(
            progress_every=1, preview_every=self.overrides.preview_every(bool(self.force_task_id))
        )

    @property
    def told(self) -> dict[str, Any]:
        """The fields as the answer repeats them."""
        shown: dict[str, Any] = from_json(self.model_dump_json(exclude=set(self._NOT_TOLD)))
        return {**shown, "alwayson_scripts": {}}

    def without_pictures(self) -> Self:
        """The same for whoever tells of it, less its pictures."""
        scripts = dict.fromkeys(self.alwayson_scripts or {})
        return self.model_copy(update={"alwayson_scripts": scripts})

    @property
    def generation_params(self) -> dict[str, Any]:
        """What A1111 tells besides of how a picture was drawn, in its own words."""
        return {}

    def notes(self) -> list[str]:
        """What is not done as A1111 does it, and changes the picture."""
        return []

    def begun_from(self) -> bytes | None:
        """The file that drawing begins from, if it begins from one.

        Raises:
            InvalidRequest: there are several, or it is no base64.
        """
        return None

    def names(self) -> dict[str, str]:
        """What our fields are called in this body."""
        layers = self.clip_skip is not None and not self.overrides.names_layer
        return {
            "guidance_scale": "cfg_scale",
            "n": "batch_size",
            "sampler": self.sampler[0],
            "schedule": "scheduler",
            "model": "override_settings.sd_model_checkpoint",
            "controls": f"alwayson_scripts.{controlnet.named(self.alwayson_scripts or {})}",
            "clip_skip": "clip_skip" if layers else "override_settings.CLIP_stop_at_last_layers",
        }

    def renamed(self, error: InvalidRequest) -> InvalidRequest:
        """The error in the words that this client sent."""
        return error.renamed(self.names())

    def params(self, named: Named, chosen: str | None = None) -> RequestParams:
        """The request in our words.

        Args:
            chosen: the model that is meant where none is named.

        Raises:
            InvalidRequest: it asks for what this server does not do.
            Unavailable: it is not known yet which models there are.
        """
        violations = list(refusals.of(self, named, chosen))
        if violations:
            raise InvalidRequest(*violations)
        layer = self.overrides.layer(self.clip_skip)
        image = self.begun_from()
        return RequestParams(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            width=self.width,
            height=self.height,
            steps=self.steps,
            guidance_scale=self.cfg_scale,
            seed=None if self.seed == RANDOM_SEED else self.seed,
            n=refusals.count(self),
            sampler=self.sampler[1],
            # Behind a sampler's name there may be another, as older clients write it.
            schedule=None if is_own_schedule(self.scheduler or "") else self.scheduler,
            quality=self.quality or None,
            model=self.overrides.model(named) or chosen,
            image=image,
            controls=controlnet.controls_of(self.alwayson_scripts or {}, image),
            clip_skip=layer,
        )


class TextToImage(Asked):
    """A1111's StableDiffusionProcessingTxt2Img."""

    enable_hr: bool | None = Field(
        None,
        description="Enlarge the pictures and draw on from there; without it fields of that are ignored.",
    )
    hr_scale: float | None = fields.documented(
        description=f"By how much, of a side; {HIRES_SCALE:g} if left out.",
        exclusiveMinimum=1,
        maximum=validation.MAX_HIRES_SCALE,
    )
    hr_resize_x: int | None = Field(None, description="To how many pixels, in place of that.")
    hr_resize_y: int | None = None
    hr_second_pass_steps: int | None = fields.documented(
        description="As many as `steps` if it is 0.", minimum=0, maximum=validation.MAX_STEPS
    )
    hr_upscaler: str | None = Field(
        None, description="`Lanczos`, or `None`, which is the same, or the name of an upscaler."
    )
    hr_checkpoint_name: str | None = Field(None, description="The same model draws on.")
    hr_sampler_name: str | None = Field(None, description="With the same sampler.")
    hr_scheduler: str | None = None
    hr_prompt: str | None = Field(None, description="And from the same prompts.")
    hr_negative_prompt: str | None = None
    hr_cfg: float | None = None
    hr_distilled_cfg: float | None = None
    hr_additional_modules: Any = None
    firstphase_width: int | None = None
    firstphase_height: int | None = None
    firstpass_image: str | None = _only("")

    def names(self) -> dict[str, str]:
        scale = "hr_scale"
        if self.hr_resize_x or self.hr_resize_y:
            scale = "hr_resize_x" if self.hr_resize_x else "hr_resize_y"
        return {
            **super().names(),
            "hires_scale": scale,
            "hires_strength": "denoising_strength",
            "hires_steps": "hr_second_pass_steps",
            "hires_upscaler": "hr_upscaler",
        }

    def notes(self) -> list[str]:
        return ["hr_upscaler: Lanczos"] if self.enable_hr and not self.hr_upscaler else []

    def scale(self, model: ModelInfo) -> float:
        """By how much a side is enlarged."""
        if self.hr_resize_x:
            return self.hr_resize_x / (self.width or model.width)
        if self.hr_resize_y:
            return self.hr_resize_y / (self.height or model.height)
        return HIRES_SCALE if self.hr_scale is None else self.hr_scale

    def params(self, named: Named, chosen: str | None = None) -> RequestParams:
        params = super().params(named, chosen)
        if not self.enable_hr:
            return params
        strength = self.denoising_strength
        return replace(
            params,
            hires_scale=self.scale(named(params.model)),
            hires_strength=DENOISING_STRENGTH if strength is None else strength,
            hires_steps=self.hr_second_pass_steps or None,
            hires_upscaler=self.hr_upscaler,
        )


class ImageToImage(Asked):
    """A1111's StableDiffusionProcessingImg2Img."""

    prompt: str = Field(
        "", description="What to draw, beside what is there.", json_schema_extra=fields.TEXT
    )
    init_images: list[str] = Field(
        description="The picture to begin from: a PNG, JPEG or WebP file as base64.",
        json_schema_extra={"minItems": 1, "maxItems": 1},
    )
    mask: str | None = fields.documented(
        description="What is drawn anew: a file of the picture's size, white there and black elsewhere.",
        contentEncoding="base64",
    )
    resize_mode: int | None = _only(
        0, 1, description="0 scales to the size that is drawn, 1 keeps proportions and cuts off."
    )
    mask_blur: int | None = fields.documented(
        description=f"Pixels by which the mask's edge is soft; {masks.DEFAULT_BLUR} if left out.",
        **masks.BLUR,
    )
    mask_blur_x: int | None = fields.documented(description="The same across.", **masks.BLUR)
    mask_blur_y: int | None = fields.documented(description="The same down.", **masks.BLUR)
    mask_round: bool | None = _unused()
    inpainting_fill: int | None = _only(
        0, 1, description="Drawing begins from what is there, which is 1; 0 is taken as that."
    )
    inpainting_mask_invert: int | None = _only(
        0, 1, description="1 draws anew what is black in the mask."
    )
    inpaint_full_res: bool | None = Field(
        None,
        description="Draw only what is masked, at the size that is drawn, and paste it in; `true` if left out.",
    )
    inpaint_full_res_padding: int | None = fields.documented(
        description="Pixels around it that are drawn with it; 0 if left out.", **masks.PADDING
    )
    initial_noise_multiplier: float | None = _only(1)
    image_cfg_scale: float | None = _unused()
    latent_mask: str | None = _only("")
    include_init_images: bool | None = _unused()

    _NOT_TOLD = Asked._NOT_TOLD | {"init_images", "mask"}

    @property
    def told(self) -> dict[str, Any]:
        return {**super().told, "init_images": None, "mask": None}

    def begun_from(self) -> bytes | None:
        if len(self.init_images) != 1:
            reason = f"has {len(self.init_images)} pictures; send one"
            raise InvalidRequest(FieldViolation("init_images", reason))
        return decoded("init_images", self.init_images[0])

    def names(self) -> dict[str, str]:
        return {**super().names(), "image": "init_images", "strength": "denoising_strength"}

    def without_pictures(self) -> Self:
        # That there was a mask is told.
        shown: dict[str, Any] = {"init_images": [], "mask": "given" if self.mask else None}
        return super().without_pictures().model_copy(update=shown)

    @property
    def generation_params(self) -> dict[str, Any]:
        return masks.told(self) if self.mask else {}

    def notes(self) -> list[str]:
        if not self.mask:
            return []
        differing = {
            "inpainting_fill: drawing began from what was there": not self.inpainting_fill,
            "mask_round: what is drawn anew was rounded": self.mask_round is False,
        }
        return [note for note, differs in differing.items() if differs]

    def params(self, named: Named, chosen: str | None = None) -> RequestParams:
        params = super().params(named, chosen)
        strength = self.denoising_strength
        return replace(
            params,
            mask=decoded("mask", self.mask or None),
            mask_inverted=bool(self.inpainting_mask_invert),
            stretched=not self.resize_mode,
            mask_blur=masks.blur(self) if self.mask else None,
            mask_padding=masks.padding(self) if self.mask else None,
            strength=DENOISING_STRENGTH if strength is None else strength,
        )
