"""From prompts to pictures, with models that are handed in; nothing is loaded here."""

from surgery.diffusion.batches import halving, in_batches, note_halving, noting_halvings, out_of_memory
from surgery.diffusion.conditions import Reading, read_prompts, size_conditions, together, two_encoders
from surgery.diffusion.control import Control
from surgery.diffusion.files import load_picture
from surgery.diffusion.guide import Guide, PassingGuide, PromptGuide
from surgery.diffusion.memory import give_back_freed
from surgery.diffusion.models import Models, Scheduler, Tokenizer
from surgery.diffusion.offload import device_and_dtype, is_offloaded, offload, resident
from surgery.diffusion.pairs import PictureTable, before_and_after, sample_table
from surgery.diffusion.pixels import decode, encode
from surgery.diffusion.predict import guided_noise, predict_noise, predict_under
from surgery.diffusion.sampling import SampleKnobs, sample, sample_latents, sampler_faults
from surgery.diffusion.schedule import NoiseSchedule, noise_schedule
from surgery.diffusion.seeds import derived_seed, generator_for
from surgery.diffusion.text import encode_prompts
from surgery.diffusion.workers import at_once, in_order

__all__ = [
    "Control",
    "Guide",
    "Models",
    "NoiseSchedule",
    "PassingGuide",
    "PictureTable",
    "PromptGuide",
    "Reading",
    "SampleKnobs",
    "Scheduler",
    "Tokenizer",
    "at_once",
    "before_and_after",
    "decode",
    "derived_seed",
    "device_and_dtype",
    "encode",
    "encode_prompts",
    "generator_for",
    "give_back_freed",
    "guided_noise",
    "halving",
    "in_batches",
    "in_order",
    "is_offloaded",
    "load_picture",
    "noise_schedule",
    "note_halving",
    "noting_halvings",
    "offload",
    "out_of_memory",
    "predict_noise",
    "predict_under",
    "read_prompts",
    "resident",
    "sample",
    "sample_latents",
    "sample_table",
    "sampler_faults",
    "size_conditions",
    "together",
    "two_encoders",
]
