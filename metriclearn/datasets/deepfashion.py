"""DeepFashion (Liu et al. 2016): the Consumer-to-Shop and the In-Shop retrieval benchmarks.

    Eval/list_eval_partition.txt
    Anno/list_bbox_consumer2shop.txt or Anno/list_bbox_inshop.txt
    img/... (or Img/img/...), from Img/img.zip
Every list begins with the number of rows and a header.
"""

import os

from metriclearn.datasets import layout
from metriclearn.datasets.table import ProductTable

PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion.html"
PAIRS = ("image_pair_name_1", "image_pair_name_2", "item_id", "evaluation_status")
PICTURES = ("image_name", "item_id", "evaluation_status")
CORNERS = ("x_1", "y_1", "x_2", "y_2")


def _open(root, boxes, dataset, check_files):
    names = ["Eval/list_eval_partition.txt", f"Anno/{boxes}", ("img", "Img/img")]
    partition, boxes, images = layout.require(root, names, dataset, PAGE, check_files)
    return partition, boxes, os.path.dirname(images)


def _boxes(file, header):
    """{image: (its other columns, (x1, y1, x2, y2))}."""
    found = {}
    for line, cells in layout.read_table(
        file, len(header) + 4, skip_header=(*header, *CORNERS), counted=True
    ):
        x1, y1, x2, y2 = layout.whole_numbers(file, line, cells[-4:])
        # Some official boxes have swapped corners or no area; boxes without area are ignored.
        x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
        box = (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else (0, 0, 0, 0)
        found[cells[0]] = cells[1:-4], box
    return found


def load_consumer_to_shop(root, check_files=True):
    """Consumer-to-Shop: 239,557 images; street photos (domain 'consumer') search shop photos.

    Products are the item ids, categories the two folders above them ('DRESSES/Skirt'), the split is
    the official one of the pairs. In val and test consumer images are queries and shop images
    the catalogue.

    Raises:
      ValueError: files are missing or damaged (the error gives file and line), an image has two
        products or splits, or an image has no box.
    """
    name = "DeepFashion Consumer-to-Shop"
    partition, box_file, base = _open(root, "list_bbox_consumer2shop.txt", name, check_files)
    boxes = _boxes(box_file, ("image_name", "clothes_type", "source_type"))
    rows = {}
    pairs = layout.read_table(partition, 4, skip_header=PAIRS, counted=True)
    for line, (consumer, shop, item, status) in pairs:
        if status not in ("train", "val", "test"):
            raise ValueError(
                f"{partition}:{line}: evaluation_status {status!r} is not one of train, val, test"
            )
        for image, domain in ((consumer, "consumer"), (shop, "shop")):
            # An image is in as many pairs as its product has images of the other domain.
            row = (item, status, domain)
            if rows.setdefault(image, row) != row:
                raise ValueError(
                    f"{partition}:{line}: {image} is {' '.join(row)} here and "
                    f"{' '.join(rows[image])} above"
                )
    roles = {"consumer": "query", "shop": "catalogue"}
    return _table(
        rows,
        base,
        {image: box for image, (_, box) in boxes.items()},
        box_file,
        name,
        check_files,
        splits=[status for _, status, _ in rows.values()],
        roles=["train" if s == "train" else roles[d] for _, s, d in rows.values()],
        domains=[domain for _, _, domain in rows.values()],
    )


def load_in_shop(root, check_files=True):
    """In-Shop: 52,712 images of 7,982 garments.

    The official train | query | gallery: query and gallery are the split 'test', the gallery is the
    catalogue. Categories are the two folders above the item ('WOMEN/Dresses').

    Raises:
      ValueError: as `load_consumer_to_shop`.
    """
    name = "DeepFashion In-Shop"
    partition, box_file, base = _open(root, "list_bbox_inshop.txt", name, check_files)
    boxes = _boxes(box_file, ("image_name", "clothes_type", "pose_type"))
    roles = {"train": "train", "query": "query", "gallery": "catalogue"}
    rows = {}
    for line, (image, item, status) in layout.read_table(
        partition, 3, skip_header=PICTURES, counted=True
    ):
        if status not in roles:
            raise ValueError(
                f"{partition}:{line}: evaluation_status {status!r} is not one of {', '.join(roles)}"
            )
        if image in rows:
            raise ValueError(f"{partition}:{line}: {image} occurs twice")
        rows[image] = (item, status)
    return _table(
        rows,
        base,
        {image: box for image, (_, box) in boxes.items()},
        box_file,
        name,
        check_files,
        splits=["train" if s == "train" else "test" for _, s in rows.values()],
        roles=[roles[s] for _, s in rows.values()],
        domains=["shop"] * len(rows),
    )


def _table(rows, base, boxes, box_file, name, check_files, **columns):
    unboxed = next((image for image in rows if image not in boxes), None)
    if unboxed is not None:
        raise ValueError(f"{box_file}: no box for {unboxed}")
    paths = [os.path.join(base, *image.split("/")) for image in rows]
    if check_files:
        layout.check_files(paths, name)
    return ProductTable(
        ids=list(rows),
        paths=paths,
        products=[row[0] for row in rows.values()],
        categories=["/".join(image.split("/")[1:3]) for image in rows],
        boxes=[boxes[image] for image in rows],
        **columns,
    )
