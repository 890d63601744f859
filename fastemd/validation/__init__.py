"""The validation of arguments, and every message of an error that it raises."""

from fastemd.validation.arguments import *
from fastemd.validation.classifiers import *
from fastemd.validation.histograms import *
from fastemd.validation.losses import *
from fastemd.validation.tables import *
