"""The official layouts of public data sets, as small folders with real JPEGs."""

import numpy as np
from PIL import Image
from scipy.io import savemat


def lay(root, pictures, texts):
    """Writes JPEGs (each of its own colour) and text files."""
    for i, name in enumerate(pictures):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (i * 20 % 256, 99, 200)).save(root / name, "JPEG")
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def sop(root):
    header = "image_id class_id super_class_id path\n"
    train = ["bicycle_final/111085122871_0.JPG", "bicycle_final/111085122871_1.JPG"]
    test = ["coffee_maker_final/1_0.JPG", "coffee_maker_final/1_1.JPG", "sofa_final/2_0.JPG"]
    return lay(
        root,
        train + test,
        {
            "Ebay_train.txt": header + f"1 1 1 {train[0]}\n2 1 1 {train[1]}\n",
            "Ebay_test.txt": header
            + f"3 11319 4 {test[0]}\n4 11319 4 {test[1]}\n5 11320 11 {test[2]}\n",
        },
    )


# The official lists do spell it 'comsumer'.
C2S = "img/DRESSES/Skirt/id_0000395{}/{}_0{}.jpg"


def consumer_to_shop(root):
    pictures = [
        C2S.format(i, who, n)
        for i in (1, 2, 3)
        for who, n in (("comsumer", 1), ("comsumer", 2), ("shop", 1))
    ]
    boxes = [
        f"{p} 2 {1 if 'shop' in p else 2} {i} {i + 1} {i + 20} {i + 25}"
        for i, p in enumerate(pictures)
    ]
    boxes[1] = f"{pictures[1]} 2 2 20 25 3 4"  # corners swapped, as some are
    status = {1: "train", 2: "val", 3: "test"}
    pairs = [
        f"{C2S.format(i, 'comsumer', n)} {C2S.format(i, 'shop', 1)} id_0000395{i} {status[i]}"
        for i in (1, 2, 3)
        for n in (1, 2)
    ]
    return lay(
        root,
        pictures,
        {
            "Anno/list_bbox_consumer2shop.txt": "9\n"
            "image_name clothes_type source_type x_1 y_1 x_2 y_2\n" + "\n".join(boxes) + "\n",
            "Eval/list_eval_partition.txt": "6\n"
            "image_pair_name_1        image_pair_name_2   item_id evaluation_status\n"
            + "\n".join(pairs)
            + "\n",
        },
    )


def in_shop(root):
    rows = [
        ("WOMEN/Dresses/id_00000002/02_1_front.jpg", "id_00000002", "train"),
        ("WOMEN/Dresses/id_00000002/02_2_side.jpg", "id_00000002", "train"),
        ("MEN/Denim/id_00000080/01_1_front.jpg", "id_00000080", "query"),
        ("MEN/Denim/id_00000080/01_2_side.jpg", "id_00000080", "gallery"),
    ]
    boxes = "\n".join(f"img/{path}     1   2   50  49  208 248" for path, _, _ in rows)
    lines = "\n".join(f"img/{path}     {item} {status}" for path, item, status in rows)
    return lay(
        root,
        [f"Img/img/{path}" for path, _, _ in rows],
        {
            "Anno/list_bbox_inshop.txt": "4\n"
            "image_name clothes_type pose_type x_1 y_1 x_2 y_2\n" + boxes + "\n",
            "Eval/list_eval_partition.txt": f"4\nimage_name item_id evaluation_status\n{lines}\n",
        },
    )


CUB_CLASSES = {
    1: "001.Black_footed_Albatross",
    100: "100.Brown_Pelican",
    101: "101.White_Pelican",
    200: "200.Common_Yellowthroat",
}


def cub(root):
    names = [f"{name}/{name[4:]}_{i:04d}_{i}.jpg" for name in CUB_CLASSES.values() for i in (1, 2)]
    labels = [label for label in CUB_CLASSES for _ in (1, 2)]
    number = list(range(1, 9))
    return lay(
        root,
        [f"images/{name}" for name in names],
        {
            "images.txt": "".join(f"{i} {n}\n" for i, n in zip(number, names, strict=True)),
            "image_class_labels.txt": "".join(
                f"{i} {label}\n" for i, label in zip(number, labels, strict=True)
            ),
            "classes.txt": "".join(f"{i} {name}\n" for i, name in CUB_CLASSES.items()),
            "bounding_boxes.txt": "".join(f"{i} {i}.0 27.0 30.0 20.0\n" for i in number),
            "train_test_split.txt": "".join(f"{i} {i % 2}\n" for i in number),
        },
    )


def cars(root):
    rows = [
        (f"car_ims/00000{i}.jpg", 5 + i, 7, 20, 25, c, i % 2)
        for i, c in enumerate((1, 98, 99, 196), 1)
    ]
    fields = ["relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test"]
    annotations = np.zeros((1, len(rows)), [(field, object) for field in fields])
    for i, row in enumerate(rows):
        annotations[0, i] = row
    names = np.empty((1, 196), object)
    names[0] = [f"Maker{i // 10} Model {i + 1} 2012" for i in range(196)]
    lay(root, [row[0] for row in rows], {})
    savemat(root / "cars_annos.mat", {"annotations": annotations, "class_names": names})
    return root


def grocery(root):
    icon = "iconic-images-and-descriptions/{}_Iconic.jpg"
    classes = [
        ("Golden-Delicious", 0, "Apple", 0, "Fruit/Apple/Golden-Delicious/Golden-Delicious"),
        ("Oatly-Oat-Milk", 1, "Oat-Milk", 1, "Packages/Oat-Milk/Oatly-Oat-Milk/Oatly"),
    ]
    header = (
        "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),"
        "Iconic Image Path (str),Product Description Path (str)\n"
    )
    pictures = [
        f"{part}/{c[4]}_00{n}.jpg"
        for part in ("train", "val", "test")
        for c in classes
        for n in (1, 2)
    ]
    texts = {
        "dataset/classes.csv": header
        + "".join(
            f"{n},{i},{coarse},{j},/{icon.format(at)},/{at}_Description.txt\n"
            for n, i, coarse, j, at in classes
        )
    }
    for part in ("train", "val", "test"):
        texts[f"dataset/{part}.txt"] = "".join(
            f"{p}, {int('Oatly' in p)}, {int('Oatly' in p)}\n"
            for p in pictures
            if p.startswith(part)
        )
    pictures += [icon.format(c[4]) for c in classes]
    return lay(root, [f"dataset/{p}" for p in pictures], texts)


MAKERS = {
    "sop": sop,
    "deepfashion_c2s": consumer_to_shop,
    "in_shop": in_shop,
    "cub200": cub,
    "cars196": cars,
    "grocery": grocery,
}


def row(table, path):
    (index,) = np.nonzero(table.ids == path)[0]
    return table.select([index])
