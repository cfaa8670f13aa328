"""The figures that the paper published (Song, Meng, Ermon, ICLR 2021), to print beside our own."""

# Table 1: FID of 50,000 samples, on CIFAR-10, by η (or σ̂), then S.
TABLE_1 = {
    "η = 0": {10: 13.36, 20: 6.84, 50: 4.67, 100: 4.16, 1000: 4.04},
    "η = 0.2": {10: 14.04, 20: 7.11, 50: 4.77, 100: 4.25, 1000: 4.09},
    "η = 0.5": {10: 16.66, 20: 8.35, 50: 5.25, 100: 4.46, 1000: 4.29},
    "η = 1": {10: 41.07, 20: 18.36, 50: 8.01, 100: 5.78, 1000: 4.73},
    "σ̂": {10: 367.43, 20: 133.37, 50: 32.72, 100: 9.99, 1000: 3.17},
}

# Table 2: reconstruction error on CIFAR-10's test set, per dimension, pixels in [0, 1], S steps each way.
TABLE_2 = {10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 200: 0.0004, 500: 0.0001, 1000: 0.0001}
