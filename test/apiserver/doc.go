// Package apiserver runs a real kube-apiserver on keelson, and on etcd to show
// that what is asked for here is what Kubernetes gets from etcd. The module
// requires k8s.io/kubernetes to build kube-apiserver and kubectl, and must not
// require keelson: the apiserver is to be linked with its own etcd client.
package apiserver
