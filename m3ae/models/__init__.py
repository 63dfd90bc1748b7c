"""The models; importing any of them registers all with transformers' Auto classes, and the pipeline."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForPreTraining,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
)

from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
from m3ae.models.finetuned import (
    M3AEForClassification,
    M3AEForClassificationOutput,
    M3AEForQuestionAnswering,
    M3AEForQuestionAnsweringOutput,
)
from m3ae.models.generation import M3AEForGeneration
from m3ae.models.hub import register_pipeline
from m3ae.models.latent_configuration import LatentConfig
from m3ae.models.latent_step import LatentStep, M3AEForGenerationOutput
from m3ae.models.likelihoods import Likelihood
from m3ae.models.modalities import (
    Modality,
    ModalityConfig,
    Scene,
    register_decoder,
    register_encoder,
    register_likelihood,
    register_modality,
)
from m3ae.models.modeling import M3AEModel, M3AEModelOutput
from m3ae.models.objectives import register_objective
from m3ae.models.pretraining import M3AEForPreTraining, M3AEForPreTrainingOutput
from m3ae.models.processing import M3AEImageProcessor, M3AEProcessor
from m3ae.models.reports import M3AEForReportGeneration, M3AEForReportGenerationOutput
from m3ae.models.retrieval import M3AEForImageTextRetrieval, M3AEForImageTextRetrievalOutput

AutoConfig.register("m3ae", M3AEConfig, exist_ok=True)
AutoModel.register(M3AEConfig, M3AEModel, exist_ok=True)
AutoModelForPreTraining.register(M3AEConfig, M3AEForPreTraining, exist_ok=True)
AutoModelForImageClassification.register(M3AEConfig, M3AEForClassification, exist_ok=True)
AutoModelForImageTextToText.register(M3AEConfig, M3AEForReportGeneration, exist_ok=True)
AutoModelForVisualQuestionAnswering.register(M3AEConfig, M3AEForQuestionAnswering, exist_ok=True)
AutoImageProcessor.register(
    M3AEConfig, image_processor_classes=dict.fromkeys(("torchvision", "pil"), M3AEImageProcessor), exist_ok=True
)  # whichever is asked for: with one of them alone, transformers warns that it falls back
AutoProcessor.register(M3AEConfig, M3AEProcessor, exist_ok=True)
register_pipeline()

__all__ = [
    "LatentConfig",
    "LatentStep",
    "Likelihood",
    "M3AEConfig",
    "M3AEForClassification",
    "M3AEForClassificationOutput",
    "M3AEForGeneration",
    "M3AEForGenerationOutput",
    "M3AEForImageTextRetrieval",
    "M3AEForImageTextRetrievalOutput",
    "M3AEForPreTraining",
    "M3AEForPreTrainingOutput",
    "M3AEForQuestionAnswering",
    "M3AEForQuestionAnsweringOutput",
    "M3AEForReportGeneration",
    "M3AEForReportGenerationOutput",
    "M3AEImageConfig",
    "M3AEImageProcessor",
    "M3AEModel",
    "M3AEModelOutput",
    "M3AEProcessor",
    "Modality",
    "ModalityConfig",
    "Scene",
    "register_decoder",
    "register_encoder",
    "register_likelihood",
    "register_modality",
    "register_objective",
]
