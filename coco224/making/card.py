"""The card of a dataset on the Hub: its rows, their source, and how to train on them."""

from typing import Any

_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
_LICENCE = (
    "The photographs of COCO belong to their photographers, under the terms under which they are on Flickr; see "
    "COCO's own terms of use."
)


def dataset_card(repo_id: str, manifest: dict[str, Any], data: Any) -> str:
    """The card in Markdown.

    Args:
        repo_id: USER/NAME.
        manifest: the manifest of `coco224.prepare`.
        data: the YAML header that `datasets` gave the card, a `DatasetCardData`; it is kept.
    """
    options, splits = manifest["options"], manifest["splits"]
    rows = sum(split["rows"] for split in splits.values())
    data.tags = ["coco", "image-compression"]
    data.task_categories = ["image-to-image"]
    data.size_categories = [next((words for most, words in _SIZES.items() if rows < most), "n>1M")]
    data.license = "other"
    table = "\n".join(
        f"| {name} | {split['rows']:,} | {split['files']:,} | {len(split['skipped']):,} |"
        for name, split in splits.items()
    )
    licences = "\n".join(f"- `{name}`: {words}" for name, words in manifest["licences"].items()) or _LICENCE
    size = options["size"]
    image, pixels = "the picture", 'np.asarray(row["image"])'
    if options["encoding"] == "raw":
        image = f"uint8 pixels, {size}x{size}x3, rows from the top, as bytes"
        pixels = f'np.frombuffer(row["image"], np.uint8).reshape({size}, {size}, 3)'
    return f"""---
{data.to_yaml().strip()}
---

# {repo_id.rpartition("/")[2]}

Crops of photographs, {size}x{size} pixels, to train image codecs on.

| split | rows | photographs | skipped |
| --- | --- | --- | --- |
{table}

Made by `python -m coco224.prepare` with `--crop {options["crop"]} --size {size} --encoding {options["encoding"]}`;
`manifest.json` has every option and version, and each skipped file with the reason.

| column | meaning |
| --- | --- |
| `image` | {image} |
| `file_name` | the photograph, in the split's folder |
| `width`, `height` | its size in pixels, upright |
| `crop_box` | left, top, right, bottom of the crop in those pixels |

```sh
accelerate launch train_accel.py --coco_dir {repo_id}                    # downloads it once
accelerate launch train_accel.py --coco_dir {repo_id} --streaming true   # reads it while training
```

```python
import datasets
import numpy as np

row = datasets.load_dataset("{repo_id}", split="train")[0]
pixels = {pixels}
```

## Licence

{licences}
"""
