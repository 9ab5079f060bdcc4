"""Prepared datasets on the Hugging Face Hub: as Parquet with a card and a manifest, and from there to rows again."""

import json
from pathlib import Path

from coco224.making.card import dataset_card
from coco224.making.manifest import MANIFEST
from coco224.repository import reasons

# Of a Parquet file, what is read at once: small enough that a reader of the stream can hold a pool of them.
_ROW_GROUP = "16MB"


def upload(folder: Path, repo_id: str, private: bool) -> None:
    """Uploads a prepared dataset. What is there already is not uploaded again: a second call completes a first.

    Raises:
        DataError: the Hub refuses it or cannot be reached.
    """
    import datasets
    from huggingface_hub import CommitOperationAdd, DatasetCard, HfApi

    datasets.config.MAX_ROW_GROUP_SIZE = _ROW_GROUP
    with reasons(f"the dataset is whole in {folder}, but not in {repo_id}: the same command completes it"):
        datasets.load_from_disk(str(folder)).push_to_hub(repo_id, private=private)
        manifest = (folder / MANIFEST).read_bytes()
        # The card keeps what `datasets` wrote into its head. The manifest comes last: it makes the files a dataset.
        card = dataset_card(repo_id, json.loads(manifest), DatasetCard.load(repo_id).data)
        files = {"README.md": card.encode(), MANIFEST: manifest}
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        HfApi().create_commit(repo_id, operations, commit_message="Card and manifest", repo_type="dataset")
