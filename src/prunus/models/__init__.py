"""Models that transformers lacks or that no hub is needed for."""

from prunus.models.as_published import PublishedCount, as_published
from prunus.models.blip2_images import Blip2Images, Blip2ImagesConfig, InstructBlipImages, InstructBlipImagesConfig
from prunus.models.blip_nlvr import BlipForImagesAndTextClassification, BlipNlvrConfig
from prunus.models.blip_retrieval import BlipForRetrievalTraining, BlipRetrievalConfig
from prunus.models.blip_vqa import BlipForVqa, BlipVqaConfig
from prunus.models.clip_retrieval import CLIPForRetrieval, CLIPRetrievalConfig
from prunus.models.convert import Published, Rule, consumed, convert, families, published_skeleton
from prunus.models.eva_vit import EvaVitConfig, EvaVitForImageClassification
from prunus.models.packaged import (
    DEC,
    SEP,
    SPECIAL_TOKENS,
    bare_blip,
    image_processor,
    small_blip,
    whiten,
    word_tokenizer,
)
from prunus.models.segmenter import SegmenterConfig, SegmenterForSemanticSegmentation, in_windows
from prunus.models.smollm2 import smollm2
from prunus.models.towers import TowerSizes, bare_with_towers, save_with_towers
from prunus.models.warm_blip import question_states, warm_blip

__all__ = [
    "DEC", "SEP", "SPECIAL_TOKENS", "Blip2Images", "Blip2ImagesConfig", "BlipForImagesAndTextClassification", "BlipForRetrievalTraining", "BlipForVqa",
    "BlipNlvrConfig", "BlipRetrievalConfig", "BlipVqaConfig", "CLIPForRetrieval", "CLIPRetrievalConfig", "EvaVitConfig",
    "EvaVitForImageClassification", "InstructBlipImages", "InstructBlipImagesConfig", "Published",
    "PublishedCount", "Rule", "SegmenterConfig", "SegmenterForSemanticSegmentation", "TowerSizes", "as_published", "bare_blip", "bare_with_towers", "consumed",
    "convert", "families", "image_processor", "in_windows", "published_skeleton", "question_states", "save_with_towers", "small_blip", "smollm2", "warm_blip", "whiten",
    "word_tokenizer",
]  # fmt: skip
