// Functions of CUDA and cuBLAS, and one of the driver's, that a pretended GPU need only let succeed.
#define SUCCEEDS(name) int name() { return 0; }

SUCCEEDS(cudaSetDevice) SUCCEEDS(cudaDeviceSynchronize) SUCCEEDS(cudaGetLastError) SUCCEEDS(cudaPeekAtLastError)
SUCCEEDS(cudaStreamDestroy) SUCCEEDS(cudaStreamSynchronize) SUCCEEDS(cudaStreamWaitEvent) SUCCEEDS(cudaEventDestroy)
SUCCEEDS(cudaEventRecord) SUCCEEDS(cudaEventRecordWithFlags) SUCCEEDS(cudaEventSynchronize)
SUCCEEDS(cudaFuncSetAttribute) SUCCEEDS(cudaLaunchKernel) SUCCEEDS(__cudaLaunchKernel) SUCCEEDS(cublasDestroy_v2)
SUCCEEDS(cublasLtDestroy) SUCCEEDS(cublasSetStream_v2) SUCCEEDS(cublasSetMathMode) SUCCEEDS(cublasGemmEx)
SUCCEEDS(cublasSgemm_v2) SUCCEEDS(cublasGemmStridedBatchedEx) SUCCEEDS(cublasSgemmStridedBatched)
SUCCEEDS(cublasGemmBatchedEx) SUCCEEDS(cublasSgemmBatched) SUCCEEDS(cublasLtMatmul)
SUCCEEDS(cublasLtMatmulDescSetAttribute) SUCCEEDS(cublasLtMatrixLayoutSetAttribute)
SUCCEEDS(cublasLtMatmulPreferenceSetAttribute) SUCCEEDS(cublasLtMatmulDescDestroy)
SUCCEEDS(cublasLtMatrixLayoutDestroy) SUCCEEDS(cublasLtMatmulPreferenceDestroy) SUCCEEDS(cublasScopy_v2)
SUCCEEDS(cuTensorMapEncodeTiled) SUCCEEDS(cudaLaunchKernelExC) SUCCEEDS(cudaLaunchCooperativeKernel)
