"""Labels of data sets meet labels of models by name or wnid, never by index."""

import pytest

from hf_tome.evaluation.data.labels import LabelError, find_class_names, match_labels, read_class_names

IMAGENET_LIKE = {0: "tench, Tinca tinca", 1: "Cardigan, Cardigan Welsh corgi", 2: "cardigan", 3: "crane", 4: "crane"}


def write_classes(folder, text="index,wnid,name\n7,n01440764,tench\n"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classes.csv").write_text(text)
    return folder / "classes.csv"


@pytest.mark.parametrize(
    ("label", "index"),
    [
        ("tench, Tinca tinca", 0),
        ("Tench", 0),
        ("TENCH,_tinca_TINCA", 0),
        ("cardigan", 2),
        ("Cardigan, Cardigan Welsh corgi", 1),
    ],
)
def test_names_match_without_regard_to_spelling(label, index):
    assert match_labels([label], IMAGENET_LIKE) == {label: index}


def test_order_of_the_data_set_does_not_matter():
    model = {0: "cat", 1: "dog", 2: "red fox"}
    assert match_labels(["red_fox", "cat"], model) == {"red_fox": 2, "cat": 0}
    assert match_labels(["cat", "red_fox"], {str(index): name for index, name in model.items()})["cat"] == 0


def test_labels_of_one_name_are_told_apart_by_number_or_refused():
    assert match_labels(["crane", "crane2"], IMAGENET_LIKE) == {"crane": 3, "crane2": 4}
    with pytest.raises(LabelError, match=r"'crane' could be any of several.*--labels"):
        match_labels(["crane"], IMAGENET_LIKE)


def test_a_number_alone_does_not_make_two_names_one():
    with pytest.raises(LabelError, match="no label 'class 2'"):
        match_labels(["class 2"], {0: "class"})


def test_wnids_take_their_names_from_the_file_and_not_their_indices(tmp_path):
    names = read_class_names(write_classes(tmp_path))
    assert match_labels(["n01440764"], IMAGENET_LIKE, names) == {"n01440764": 0}


def test_wnids_within_the_models_labels_win():
    assert match_labels(["n03126707"], {0: "crane (n02012849)", 1: "crane (n03126707)"}) == {"n03126707": 1}


def test_wnids_of_the_same_name_need_only_the_file_to_list_both(tmp_path):
    text = "index,wnid,name\n134,n02012849,crane\n517,n03126707,crane\n"
    names = read_class_names(write_classes(tmp_path, text))
    assert match_labels(["n03126707"], IMAGENET_LIKE, names) == {"n03126707": 4}


def test_unknown_label_is_named_with_what_the_model_has():
    with pytest.raises(LabelError, match=r"no label 'zebra'.*2 labels are 'cat', 'dog'.*--labels"):
        match_labels(["cat", "zebra"], {0: "cat", 1: "dog"})


def test_wnids_without_a_file_say_where_to_put_it():
    with pytest.raises(LabelError, match=r"wnids: put a classes\.csv \(columns index,wnid,name\)"):
        match_labels(["n01440764"], IMAGENET_LIKE)


@pytest.mark.parametrize("place", ["photos/validation", "photos", "."])
def test_classes_file_is_found(tmp_path, place):
    (tmp_path / "photos" / "validation").mkdir(parents=True)
    write_classes(tmp_path / place)
    assert find_class_names(tmp_path / "photos", "validation").names == {"n01440764": "tench"}


def test_labels_file_without_its_columns_is_refused(tmp_path):
    with pytest.raises(LabelError, match=r"columns \['a', 'b'\].*needs 'name'"):
        read_class_names(write_classes(tmp_path, "a,b\n1,2\n"))
    with pytest.raises(LabelError, match="Cannot read the labels file"):
        read_class_names(tmp_path / "absent.csv")


def test_imagenet_folders_match_deit(data):
    """The real thing: 1,000 wnids, two of whose names the model has twice."""
    from transformers import AutoConfig

    names = find_class_names(data / "imagenet_sample", "validation")
    labels = AutoConfig.from_pretrained(data / "deit-tiny-patch16-224").id2label
    assert list(match_labels(list(names.names), labels, names).values()) == list(range(1000))


@pytest.mark.parametrize("labels", [["crane, bird", "crane, machine"], ["tench", "tench, Tinca tinca"]])
def test_two_labels_that_could_be_the_same_one_are_refused(labels):
    model = {0: "tench, Tinca tinca", 1: "crane"}
    with pytest.raises(LabelError, match=r"could both be the model's .*--labels"):
        match_labels(labels, model)


def test_the_labels_file_may_say_that_two_labels_are_the_same(tmp_path):
    names = read_class_names(write_classes(tmp_path, "label,name\ntabby,cat\nsiamese,cat\n"))
    assert match_labels(["tabby", "siamese"], {0: "dog", 1: "cat"}, names) == {"tabby": 1, "siamese": 1}


@pytest.mark.parametrize(
    ("name", "text", "by_index"),
    [
        ("classes.csv", "index,label,name\n1,b,bird\n0,a,ant\n", ["a", "b"]),
        ("classes.csv", "index,label,name\n7,b,bird\n0,a,ant\n", []),
        ("classes.csv", "label,name\nb,bird\n", []),
        ("classnames.txt", "ant\n\nbird \n", ["ant", "bird"]),
    ],
)
def test_labels_by_number(tmp_path, name, text, by_index):
    (tmp_path / name).write_text(text)
    names = find_class_names(tmp_path, "validation")
    assert names is not None
    assert list(names.by_index) == by_index
