"""The encoder in a repository of the Hugging Face Hub, by its user's own token."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from byol.encoders.encoder import Encoder
from byol.errors import ByolError, ConfigError, complaint, library
from byol.exports.export import export
from byol.exports.verify import Check

CARD = "README.md"
NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


@dataclass(frozen=True)
class Pushed:
    """Where the encoder is now, and what was made of its card."""

    address: str
    check: Check  # how near the tool that the uploaded files are for comes to the encoder
    kept_card: bool  # whether one stood there already


def push(
    encoder: Encoder,
    repository: str,
    *,
    public: bool = False,
    run: str | Path | None = None,
    model: str | None = None,
    endpoint: str | None = None,
) -> Pushed:
    """Upload what `export` writes for huggingface to the repository "user/name".

    A repository that is not there is made, and only its owner sees it unless it is `public`. A model card
    that stands there already stays, since its author writes on it; other files of the same names are
    replaced, and the Hub keeps the earlier ones. `run` and `model` are as in `export`. The token is that of
    `hf auth login` or of HF_TOKEN; `endpoint`, by default HF_ENDPOINT, is the address of another hub. Raises
    ConfigError for a name or a token that cannot be, and ByolError for what the Hub refuses or when it cannot
    be reached.
    """
    if not NAME.fullmatch(repository):
        raise ConfigError(f"{repository!r} is not a repository of the Hub; expected user/name.")
    hub = library("huggingface_hub", "hub")
    if hub.get_token() is None:
        raise ConfigError(
            "There is no token of the Hugging Face Hub. Log in with hf auth login, or set HF_TOKEN; "
            "huggingface.co/settings/tokens has tokens that may write."
        )
    with tempfile.TemporaryDirectory() as folder:
        done = export(encoder, Path(folder) / "encoder", format="huggingface", run=run, model=model)
        try:
            interface = hub.HfApi(endpoint, library_name="byol")
            made = interface.create_repo(repository, private=not public, exist_ok=True)
            kept = interface.file_exists(made.repo_id, CARD)
            interface.upload_folder(
                repo_id=made.repo_id,
                folder_path=done.path,
                commit_message="Encoder exported by byol",
                ignore_patterns=[CARD] if kept else None,
            )
        except Exception as failure:  # of its library's three HTTP libraries, by its version
            why = complaint(failure).rstrip(".")
            raise ByolError(
                f"{repository} was not uploaded: {why}. Look at the name, at what the token "
                "may do and at the connection, then run it again."
            ) from failure
    return Pushed(str(made), done.check, kept)
