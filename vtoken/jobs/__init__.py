"""Many videos: one row in, one row out, by processes of this machine or by Ray Data."""

from vtoken.jobs.answer import Answerer, Reader
from vtoken.jobs.on_ray import answer_on_ray
from vtoken.jobs.processes import answer_in_processes
from vtoken.jobs.recipe import Recipe, listed
from vtoken.jobs.written import Written

__all__ = ["Answerer", "Reader", "Recipe", "Written", "answer_in_processes", "answer_on_ray", "listed"]
