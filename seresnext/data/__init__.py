"""Data: from files to batches on the device. Each row imports only from the rows below.

pipeline.py               batches on the device, built from a recipe and readers
loading/  survey.py       worker processes and the copy to the device; a look at the headers of images
synthetic.py              batches of noise, for benchmarks
batches.py                batches on the host: training and evaluation images
augment/  substitute.py   crop, policies, erasing, mixup, image sizes; replacement of bad images
formats.py                the table of readers
shards/                   the reader of tar shards, on a disk or a server
decode/  readers/         JPEG and PNG to pixels; the readers of folders and of ImageNet's archives
worker_status.py          the images that each loader worker reads
order.py                  the images of each step
"""
