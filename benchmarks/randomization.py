"""Which explanations of a trained ResNet-18 change when its weights are made random, layer by layer from the last?

    CIFARKIT_DATA=data python benchmarks/randomization.py --weights runs/<of train_classifier.py>/last.pt
    python benchmarks/randomization.py --tiny     # seconds, drawn images and random weights, to see that it runs

A map of what the model has learnt must change. Two that should not pass are there to show that the check can fail: the
edges of the image, which know nothing of any model, and guided backpropagation, which Adebayo et al. 2018 found to
depend little on the upper layers. Figures are rank correlations with the map of the trained model, the mean of the
images, after a quarter, a half, three quarters and all of the layers.
"""

from __future__ import annotations

from attribution import load
from planted_features import EDGES, GUIDED, REFERENCES
from report import Report, Table, arguments, destination

from cifarkit.attribution import METHODS, randomization_check

PASS, FAIL = ("saliency", "grad_cam"), (EDGES, GUIDED)  # of Adebayo et al. 2018, beside the edges


def main() -> None:
    parser = arguments(__doc__, "randomization")
    parser.add_argument("--weights", help="of a ResNet-18 trained on CIFAR-10; without it they are random")
    args = parser.parse_args()
    model, images, labels = load(args, 2 if args.tiny else 4)
    methods = [*METHODS[: 2 if args.tiny else None], *FAIL]
    report = Report("randomization", {"weights": bool(args.weights), "images": len(images)}, packages=("captum",))
    rows = []
    for name in methods:
        check = randomization_check(model, images, labels, REFERENCES.get(name, name))
        stages = [f"{value:.2f}" for value in check.correlations.mean(1)]
        rows.append([name, *stages, f"{check.kept:.2f}", f"{check.kept_absolute:.2f}", check.verdict.partition(":")[0]])
        report.figures[name] = {"correlations": check.correlations.tolist(), "absolute": check.absolute.tolist()}
        if name in PASS:
            report.aim(f"{name} passes", f"{check.kept:.2f} kept", check.passed)
        if name in FAIL:
            report.aim(f"{name} fails", f"{check.kept:.2f} kept", not check.passed)
        print(check, flush=True)
    columns = ["method", "a quarter", "half", "three quarters", "all layers", "mean", "without sign", "check"]
    report.tables.append(Table("rank correlation kept", columns, rows))
    report.publish(destination(args, "randomization"))


if __name__ == "__main__":
    main()
