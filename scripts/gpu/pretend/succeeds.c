// Functions of CUDA and cuBLAS that a pretended GPU need only let succeed.
#define SUCCEEDS(name) int name() { return 0; }

SUCCEEDS(cudaSetDevice) SUCCEEDS(cudaDeviceSynchronize) SUCCEEDS(cudaGetLastError) SUCCEEDS(cudaPeekAtLastError)
SUCCEEDS(cudaStreamDestroy) SUCCEEDS(cudaStreamWaitEvent) SUCCEEDS(cudaEventDestroy) SUCCEEDS(cudaEventRecord)
SUCCEEDS(cudaEventRecordWithFlags) SUCCEEDS(cudaEventSynchronize) SUCCEEDS(cudaFuncSetAttribute)
SUCCEEDS(cudaStreamBeginCapture) SUCCEEDS(cudaGraphDestroy) SUCCEEDS(cudaGraphExecDestroy)
SUCCEEDS(cublasDestroy_v2) SUCCEEDS(cublasLtDestroy) SUCCEEDS(cublasSetStream_v2) SUCCEEDS(cublasSetMathMode)
SUCCEEDS(cublasLtMatmulDescSetAttribute) SUCCEEDS(cublasLtMatrixLayoutSetAttribute)
SUCCEEDS(cublasLtMatmulPreferenceSetAttribute) SUCCEEDS(cublasLtMatmulDescDestroy)
SUCCEEDS(cublasLtMatrixLayoutDestroy) SUCCEEDS(cublasLtMatmulPreferenceDestroy) SUCCEEDS(cublasScopy_v2)
