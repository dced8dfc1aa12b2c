"""A checkpoint's folder from the Hugging Face hub, in huggingface_hub's cache; knows no file format."""

from pathlib import Path

from megrez.runtime.errors import CheckpointError, MissingExtraError

# Data only: no Python, no pickle. The index and every config are JSON.
PATTERNS = ("*.safetensors", "*.json", "*.jinja")
# Copies of the weights in Mistral's and Meta's own formats.
DUPLICATES = ("*consolidated*",)


def download(model_id: str, *, revision: str | None) -> Path:
    """The local folder of `model_id` ("owner/name"); raises CheckpointError where it cannot be downloaded."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise MissingExtraError(
            needed_for=f"downloading {model_id}", library="huggingface_hub", extra="export"
        ) from error
    requested = model_id if revision is None else f"{model_id} at revision {revision}"
    try:
        found = huggingface_hub.snapshot_download(
            model_id, revision=revision, allow_patterns=list(PATTERNS), ignore_patterns=list(DUPLICATES)
        )
        return Path(found)
    except errors.HFValidationError as error:
        raise CheckpointError(f"{model_id!r} is neither a local path nor a hub id such as owner/name") from error
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{requested} is gated: accept its licence on the hub, then run  hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{requested} does not exist on the hub: correct the revision or leave it out") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{requested} was not found on the hub: check its spelling, or run  hf auth login  where it is private"
        ) from error
    except Exception as error:  # huggingface_hub does not wrap its HTTP client's errors
        raise CheckpointError(
            f"{requested} was requested, but the hub could not be reached ({type(error).__name__}) and no local copy "
            "is complete: connect, or name a local folder or .gguf file"
        ) from error
