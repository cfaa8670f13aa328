"""The figures that the paper published (Song, Meng, Ermon, ICLR 2021), to print beside our own."""

# Table 2: reconstruction error on CIFAR-10's test set, per dimension, pixels in [0, 1], S steps each way.
TABLE_2 = {10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 200: 0.0004, 500: 0.0001, 1000: 0.0001}
