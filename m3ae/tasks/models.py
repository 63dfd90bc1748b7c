"""The model of a run, of any class: built anew or from a saved model with the same trunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import set_seed
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from m3ae.data.tokenizer import train_tokenizer
from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
from m3ae.models.modeling import M3AEModel, M3AEPreTrainedModel
from m3ae.models.processing import M3AEImageProcessor, M3AEProcessor, check_processor
from m3ae.options import named
from m3ae.training.config import RunConfig
from m3ae.training.model_options import check_overrides
from m3ae.training.sections import InitConfig
from m3ae.transfer.image_encoders import image_contradictions, image_options, init_image_encoder, resize_images
from m3ae.transfer.text_encoders import contradictions, init_text_encoder, load_tokenizer, read_text_config
from m3ae.transfer.vision_transformers import PublishedViT

# What belongs to a trained head, at its defaults.
_OF_HEAD = {"decision_thresholds": None, "calibration_temperature": 1.0, "input_streams": None}

NOT_FOUND = "there is no such folder, and the hub has no model of this name or cannot be reached"

# What a saved configuration says of its file rather than of the encoder.
_BOOKKEEPING = ("architectures", "dtype", "transformers_version", "_name_or_path")

ModelT = TypeVar("ModelT", bound=M3AEPreTrainedModel)


def check_model(config: RunConfig) -> None:
    """Make sure that the model of a run can be opened, before data are prepared for it.

    Raises:
        ValueError: There is no such saved model, published encoder or tokenizer, or it has no such options.
    """
    path, source = config.model.path, config.model.init.text_encoder
    if path is not None:
        saved = saved_config(path)
        assert isinstance(saved.text_config, PreTrainedConfig)
        with named("model."):
            check_overrides(config.overrides, saved.text_config.model_type)
        with named("model.overrides: "):
            merged_config(saved, config.overrides)
        return
    if source is not None:
        with named("model."):
            check_overrides(config.overrides, read_text_config(source).model_type)
    if (tokenizer := config.tokenizer.path or source) is not None:
        load_tokenizer(tokenizer)
    with_image_options(read_image_encoder(config.model.init), config.overrides)


def open_model(
    config: RunConfig,
    model_class: type[ModelT],
    texts: Callable[[], Sequence[str]],
    options: Mapping[str, Any] | None = None,
    *,
    new_head: bool = False,
) -> tuple[ModelT, M3AEProcessor]:
    """Build the model of a run: from `model.path` if that is set, otherwise anew.

    Args:
        config: The run; `finetuning.image_size` interpolates the position table.
        model_class: Any model of this package.
        texts: Function that returns the training texts, for the tokenizer of a new model unless the config names one.
        options: Options of `M3AEConfig`, such as `id2label`.
        new_head: Whether the head is drawn at random, whatever the saved model has.

    Returns:
        Model and processor. Everything drawn at random depends on the run's seed alone.

    Raises:
        ValueError: There is no such saved model, it has not the head of `model_class`, or sizes do not fit.
    """
    options, overrides = dict(options or {}), config.overrides
    if config.model.path is None:
        tokenizer, image_encoder = build_tokenizer(config, texts), read_image_encoder(config.model.init)
        model = model_class(new_config(config, tokenizer, image_encoder, overrides | options))
        start_encoders(model, image_encoder, config.model.init.text_encoder)
        processor = M3AEProcessor(image_processor_for(model), tokenizer)
    else:
        model, processor = load_model(
            model_class,
            config.model.path,
            overrides,
            options,
            new_head=new_head,
            from_scratch=config.model.from_scratch,
            seed=config.training.seed,
        )
    check_text_length(model.config, config.data.max_text_length)
    return model, processor


def build_tokenizer(config: RunConfig, texts: Callable[[], Sequence[str]]) -> PreTrainedTokenizerBase:
    """Load the run's tokenizer, or that of the published text encoder, or train it on texts.

    Raises:
        ValueError: There is no such tokenizer, or the text encoder was trained with another vocabulary.
    """
    path, source = config.tokenizer.path, config.model.init.text_encoder
    if source is not None:
        vocab_size = read_text_config(source).vocab_size
        tokenizer = load_tokenizer(path or source)
        check_vocabulary(tokenizer, source, vocab_size)
        return tokenizer
    return load_tokenizer(path) if path is not None else train_tokenizer(texts(), config.tokenizer.vocab_size)


def new_config(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, image_encoder: PublishedViT | None, options: dict[str, Any]
) -> M3AEConfig:
    """Return the configuration of a named size with a tokenizer's vocabulary and the sizes of published encoders.

    The generators are seeded for it.

    Raises:
        ValueError: `model.overrides` contradict a published encoder.
    """
    vocabulary = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
        "eos_token_id": tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id,
    }
    chosen, source = options.pop("text_config", {}), config.model.init.text_encoder
    text_config: dict[str, Any] | PreTrainedConfig = vocabulary | chosen
    if source is not None:  # whose file may hold more than its type of configuration declares
        text_config = AutoConfig.for_model(**_source_options(source, vocabulary, chosen) | chosen)
    model_config = M3AEConfig.named(
        config.model.size,
        mask_token_id=tokenizer.mask_token_id,
        text_config=text_config,
        **with_image_options(image_encoder, options),
    )
    set_seed(config.training.seed)
    return model_config


def _source_options(source: str, vocabulary: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the text encoder that a run starts from, with the tokenizer's special tokens.

    Raises:
        ValueError: `model.overrides.text_config` contradicts the source.
    """
    config = read_text_config(source)
    _require_agreement("text", source, contradictions(config, overrides), overrides)
    special = {name: value for name, value in vocabulary.items() if name != "vocab_size" and value is not None}
    return {name: value for name, value in config.to_dict().items() if name not in _BOOKKEEPING} | special


def _require_agreement(kind: str, source: str, different: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Raise ValueError if overrides contradict a published encoder, whose options `different` has by name."""
    if different:
        pairs = "; ".join(
            f"{name} is {value} there and {overrides.get(name)} here" for name, value in different.items()
        )
        raise ValueError(
            f"model.overrides.{kind}_config contradicts the {kind} encoder in {source!r}: {pairs}. Leave these out: "
            f"the {kind} encoder's sizes are taken from the source."
        )


def read_image_encoder(init: InitConfig) -> PublishedViT | None:
    """Read the published image encoder that a run starts from, if there is one.

    Raises:
        ValueError: The encoder cannot be read.
    """
    if init.image_encoder is None:
        return None
    from m3ae.transfer.vision_sources import read_vit  # needs timm, which is slow to import

    return read_vit(init.image_encoder)


def with_image_options(published: PublishedViT | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of `M3AEConfig` with the sizes of the image encoder that a run starts from.

    Raises:
        ValueError: The options of `image_config` contradict the encoder.
    """
    if published is None:
        return dict(options)
    chosen = dict(options.get("image_config") or {})
    theirs = {name: value for name, value in image_options(published).items() if name not in published.assumed}
    _require_agreement("image", published.source, image_contradictions(theirs, chosen), chosen)
    return {**options, "image_config": image_options(published) | chosen}


def start_encoders(model: M3AEPreTrainedModel, image_encoder: PublishedViT | None, text_encoder: str | None) -> None:
    """Copy published encoders into a new model, and print what was copied.

    Raises:
        ValueError: An encoder cannot be read or does not fit the model.
    """
    if image_encoder is not None:
        PartialState().print(init_image_encoder(model, image_encoder))
    if text_encoder is not None:
        PartialState().print(init_text_encoder(model, text_encoder))


def image_processor_for(model: M3AEPreTrainedModel) -> M3AEImageProcessor:
    """Build the image processor of a model from its configuration."""
    config = model.config.image_config
    assert isinstance(config, M3AEImageConfig)
    normalization = {"image_mean": config.image_mean, "image_std": config.image_std}
    return M3AEImageProcessor.for_size(config.image_size, config.resize, **normalization)


def saved_config(path: str) -> M3AEConfig:
    """Read the configuration of a saved model; `architectures` names its class.

    Raises:
        ValueError: There is none.
    """
    try:
        config: M3AEConfig = M3AEConfig.from_pretrained(path)
    except OSError as error:
        reason = str(error).splitlines()[0] if Path(path).is_dir() else NOT_FOUND
        raise ValueError(f"model.path: no saved M3AE model in {path!r}: {reason}.") from error
    return config


def has_labels(path: str | None, model_class: type[M3AEPreTrainedModel], labels: Sequence[str]) -> bool:
    """Return whether the saved model is of a class and has a head for just these labels."""
    if path is None:
        return False
    saved = saved_config(path)
    return saved.architectures == [model_class.__name__] and label_names(saved) == [*labels]


def label_names(config: M3AEConfig) -> list[str]:
    """Return the names of a head's labels, in the order of its columns."""
    names: Mapping[Any, str] = config.id2label or {}
    return [names[column] for column in range(len(names))]


def load_model(
    model_class: type[ModelT],
    path: str,
    overrides: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    new_head: bool,
    from_scratch: bool,
    seed: int,
) -> tuple[ModelT, M3AEProcessor]:
    """Load a saved model of any class as one of `model_class`, and its processor.

    Args:
        model_class: What to make of it.
        path: Folder or hub name.
        overrides: Options of `M3AEConfig` that the user replaces; another image size interpolates the position table.
        options: Options that the task replaces.
        new_head: Whether the head is drawn at random; otherwise the saved model has to have it.
        from_scratch: Whether the trunk is drawn at random, too.
        seed: Seed of the weights that are drawn.

    Raises:
        ValueError: There is no such model, the head is missing, weights have other shapes than the configuration, or
            the processor contradicts the configuration.
    """
    saved = saved_config(path)
    try:
        processor = M3AEProcessor.from_pretrained(path)
    except OSError as error:
        raise ValueError(f"model.path: no processor in {path!r} ({str(error).splitlines()[0]}).") from error
    assert isinstance(saved.image_config, M3AEImageConfig)
    check_processor(processor.image_processor, saved.image_config)
    of_head = _OF_HEAD if new_head or saved.architectures != [model_class.__name__] else {}
    wanted, image_size = merged_config(saved, {**of_head, **overrides, **options})
    set_seed(seed)
    try:
        if from_scratch or new_head:
            model = model_class(wanted)
            if not from_scratch:
                model.base_model.load_state_dict(M3AEModel.from_pretrained(path, config=wanted).state_dict())
        else:
            model = _load_whole(model_class, path, wanted)
    except RuntimeError as error:
        if "mismatch" not in str(error):
            raise
        raise ValueError(
            f"The weights in {path!r} have other sizes than the configuration asks for: model.overrides "
            f"{dict(overrides)} change the shape of parameters, or the head has not one row for each of its labels. "
            "Leave those overrides out, or start a new model with model.size."
        ) from error
    if image_size != saved.image_config.image_size:
        resize_images(model, image_size)
    built = image_processor_for(model)
    if image_size != saved.image_config.image_size or built.resize_mode != saved.image_config.resize:
        processor.image_processor = built
    return model, processor


def merged_config(saved: M3AEConfig, changes: Mapping[str, Any]) -> tuple[M3AEConfig, int]:
    """Return a saved configuration with changes except for its image size, and the image size after the changes."""
    M3AEConfig.check_options(changes)
    options = saved.to_dict()
    for key, value in changes.items():
        merge = isinstance(value, dict) and key != "id2label"
        options[key] = {**(options.get(key) or {}), **value} if merge else value
    for stale in ("architectures", *(["label2id"] if "id2label" in changes else [])):
        options.pop(stale, None)
    wanted = M3AEConfig.from_dict(options)
    assert isinstance(wanted.image_config, M3AEImageConfig) and isinstance(saved.image_config, M3AEImageConfig)
    image_size, wanted.image_config.image_size = wanted.image_config.image_size, saved.image_config.image_size
    return wanted, image_size


def _load_whole(model_class: type[ModelT], path: str, config: M3AEConfig) -> ModelT:
    """Load trunk and head.

    Raises:
        ValueError: The saved model has no such head.
    """
    loaded: Any = model_class.from_pretrained(path, config=config, output_loading_info=True)
    model: ModelT = loaded[0]
    missing = set(loaded[1]["missing_keys"]) - {"itc_head.bias"}  # of another loss of contrast, it starts anew
    heads = sorted({name.partition(".")[0] for name in missing if not name.startswith("m3ae.")})
    if heads:
        saved = ", ".join(saved_config(path).architectures or ["a model of unknown class"])
        raise ValueError(
            f"The model in {path!r} is {saved} and has no {' or '.join(heads)}, which {model_class.__name__} needs: "
            "fine-tune it first, or name the folder of a fine-tuned model."
        )
    return model


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, text_encoder: str, vocab_size: int) -> None:
    """Raise if a published text encoder with `vocab_size` words was trained with others than the tokenizer's."""
    advice = f"Set tokenizer.path to the tokenizer that {text_encoder!r} was trained with."
    vocabulary, trained_with = tokenizer.get_vocab(), dict[str, int]()
    if tokenizer.name_or_path != text_encoder:
        trained_with = load_tokenizer(text_encoder).get_vocab()
    known = _fills(len(trained_with), vocab_size)  # a folder without a tokenizer's files gives an empty one
    if (len(vocabulary) != len(trained_with)) if known else not _fills(len(vocabulary), vocab_size):
        raise ValueError(
            f"The tokenizer in {tokenizer.name_or_path!r} has {len(vocabulary)} words, the text encoder in "
            f"{text_encoder!r} has {vocab_size}; a folder without a tokenizer's files gives an empty one. {advice}"
        )
    if known and trained_with != vocabulary:
        different = next(word for word, index in vocabulary.items() if trained_with.get(word) != index)
        raise ValueError(
            f"The tokenizer in {tokenizer.name_or_path!r} numbers words otherwise than the text encoder in "
            f"{text_encoder!r}: {different!r} is {vocabulary[different]} and {trained_with.get(different)}. {advice}"
        )


def _fills(num_words: int, vocab_size: int) -> bool:
    """Return whether a vocabulary may be that of a word table, whose rows some libraries round up."""
    return vocab_size // 2 < num_words <= vocab_size and vocab_size - num_words < 512


def check_text_length(config: M3AEConfig, max_text_length: int) -> None:
    """Raise if the position table cannot hold texts of `max_text_length` tokens."""
    if max_text_length > config.longest_text:
        raise ValueError(
            f"data.max_text_length must be at most {config.longest_text}, got {max_text_length}: its position table "
            "ends there. Set model.overrides.text_config.max_position_embeddings."
        )
