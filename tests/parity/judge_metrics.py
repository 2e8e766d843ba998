"""Scores by other libraries. Each function answers {"cases": [[…], …]} with the numbers of each case, in one order."""


def labels(request):
    """[right, predicted] labels -> accuracy, macro F1, micro F1, MCC, and the confusion matrix row by row."""
    import warnings

    from sklearn import metrics

    warnings.simplefilter("ignore")                                 # labels that nobody predicted
    return [[metrics.accuracy_score(a, b), metrics.f1_score(a, b, average="macro"),
             metrics.f1_score(a, b, average="micro"), metrics.matthews_corrcoef(a, b),
             *metrics.confusion_matrix(a, b).flatten().tolist()] for a, b in request["cases"]]


def label_sets(request):
    """[right, predicted] lists of labels -> accuracy of whole sets, macro F1, micro F1, over the labels that occur."""
    from sklearn import metrics
    from sklearn.preprocessing import MultiLabelBinarizer

    answers = []
    for a, b in request["cases"]:
        binarizer = MultiLabelBinarizer().fit(a + b)
        a, b = binarizer.transform(a), binarizer.transform(b)
        answers.append([metrics.accuracy_score(a, b), *(metrics.f1_score(a, b, average=average, zero_division=0)
                                                        for average in ("macro", "micro"))])
    return answers


def calibration(request):
    """[confidences, whether each was right] -> expected calibration error with 15 bins."""
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    return [[binary_calibration_error(torch.tensor(a), torch.tensor(b), n_bins=15, norm="l1").item()]
            for a, b in request["cases"]]


def entities(request):
    """[right, predicted] rows of tags -> precision, recall, F1 of all, and of each type in the order of their names."""
    import warnings

    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

    warnings.simplefilter("ignore")
    return [[*_three(precision_recall_fscore_support(a, b, average="micro")),
             *(float(number) for each in zip(*_three(precision_recall_fscore_support(a, b)), strict=True)
               for number in each)] for a, b in request["cases"]]


def segments(request):
    """[right, predicted] rows of the tags B, M, E, S of words -> precision, recall, F1, by the strict reading."""
    import warnings

    from seqeval.metrics.v1 import precision_recall_fscore_support
    from seqeval.scheme import IOBES

    warnings.simplefilter("ignore")
    answers = []
    for case in request["cases"]:
        a, b = ([[tag.replace("M-", "I-") for tag in row] for row in side] for side in case)
        answers.append([float(number) for number in
                        _three(precision_recall_fscore_support(a, b, average="micro", scheme=IOBES))])
    return answers


def _three(scores):
    return [each if hasattr(each, "__len__") else float(each) for each in scores[:3]]


def squad(request):
    """[right answers, predicted] -> exact match, F1."""
    from torchmetrics.functional.text import squad

    answers = []
    for right, found in request["cases"]:
        scores = squad([{"prediction_text": found, "id": "1"}],
                       [{"answers": {"answer_start": [0] * len(right), "text": right}, "id": "1"}])
        answers.append([scores[name].item() / 100 for name in ("exact_match", "f1")])
    return answers


CMRC_PUNCTUATION = "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』"


def cmrc(request):
    """[right answers, predicted] -> exact match, F1 by CMRC's definition: the longest common substring of segments."""
    from difflib import SequenceMatcher

    from nltk.tokenize import NLTKWordTokenizer

    tokenizer = NLTKWordTokenizer()

    def bare(text):
        return text.lower().strip().translate({ord(sign): None for sign in CMRC_PUNCTUATION})

    def segments_of(text):
        spaced = "".join(f"\n{sign}\n" if "\u4e00" <= sign <= "\u9fa5" else sign for sign in bare(text))
        return [segment for piece in spaced.split("\n") for segment in tokenizer.tokenize(piece)]

    def f1(right, found):
        a, b = segments_of(right), segments_of(found)
        size = SequenceMatcher(None, a, b, autojunk=False).find_longest_match(0, len(a), 0, len(b)).size
        precision, recall = (size / max(1, len(side)) for side in (b, a))
        return 2 * precision * recall / (precision + recall) if size else 0.0

    return [[float(any(bare(answer) == bare(found) for answer in right)), max(f1(answer, found) for answer in right)]
            for right, found in request["cases"]]


def bleu(request):
    """[predicted, references] -> BLEU with the tokenization asked for."""
    import logging

    import sacrebleu

    logging.getLogger("sacrebleu").setLevel(logging.ERROR)          # that texts look tokenised
    return [[sacrebleu.corpus_bleu(a, [b], tokenize=request["tokenization"]).score] for a, b in request["cases"]]


def chrf(request):
    """[predicted, references] -> chrF2."""
    import sacrebleu

    return [[sacrebleu.corpus_chrf(a, [b]).score] for a, b in request["cases"]]


def rouge(request):
    """[predicted, references] -> F1 of ROUGE-1, -2, -L, averaged; "characters": each but punctuation is a word."""
    from rouge_score.rouge_scorer import RougeScorer

    class Characters:
        def tokenize(self, text):
            return [sign for sign in text if sign.isalnum()]

    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names, tokenizer=Characters() if request.get("characters") else None)
    answers = []
    for a, b in request["cases"]:
        scores = [scorer.score(right, found) for found, right in zip(a, b, strict=True)]
        answers.append([sum(each[name].fmeasure for each in scores) / len(scores) for name in names])
    return answers


def wilson(request):
    """[right, count] -> the ends of Wilson's interval of 95 %."""
    from scipy.stats import binomtest

    intervals = [binomtest(right, n).proportion_ci(0.95, method="wilson") for right, n in request["cases"]]
    return [[each.low, each.high] for each in intervals]
