from mtrec.paths import Paths


def test_a_run_keeps_everything_below_its_workdir() -> None:
    paths = Paths("s3://bucket/run")

    assert paths.dataset == "s3://bucket/run/dataset"
    assert paths.embeddings == "s3://bucket/run/embeddings"
    assert paths.bundles == "s3://bucket/run/bundles"


def test_a_run_beside_another_reads_its_data_and_keeps_its_own_results() -> None:
    paths = Paths("run/twins/like", shared="run")

    assert (paths.dataset, paths.embeddings) == ("run/dataset", "run/embeddings")
    assert paths.bundles == "run/twins/like/bundles"
    assert paths.report == "run/twins/like/report"
    assert paths.predictions == "run/twins/like/predictions"
