// Package licenseapi has the names that vcluster and its API types take from a module whose licence forbids to pass it on. Written from their
// uses alone: the types are empty, the features are names for error messages, and nothing is unlocked.
package licenseapi

// What API types of the commercial platform refer to; no program here has one.
type (
	Announcement     struct{}
	Feature          struct{}
	License          struct{}
	PlatformDatabase struct{}
	ResourceCount    struct{}
)

func (*Announcement) DeepCopyInto(*Announcement)         {}
func (*Feature) DeepCopyInto(*Feature)                   {}
func (*License) DeepCopyInto(*License)                   {}
func (*PlatformDatabase) DeepCopyInto(*PlatformDatabase) {}
func (*ResourceCount) DeepCopyInto(*ResourceCount)       {}

// DeepCopy is for maps of such values.
func (*ResourceCount) DeepCopy() *ResourceCount { return &ResourceCount{} }

// ProductName names a product in messages.
type ProductName string

const (
	Loft        ProductName = "loft"
	VClusterPro ProductName = "vcluster-pro"
)

// FeatureName names what only the commercial product has.
type FeatureName string

const (
	HybridScheduling                        FeatureName = "hybrid scheduling"
	KubeVip                                 FeatureName = "kube-vip"
	Standalone                              FeatureName = "standalone"
	SyncNamespacesTohost                    FeatureName = "synchronising namespaces"
	VirtualClusterProDistroBuiltInCoreDNS   FeatureName = "built-in CoreDNS"
	VirtualClusterProDistroEmbeddedEtcd     FeatureName = "embedded etcd"
	VirtualClusterProDistroExternalDatabase FeatureName = "external database"
	VirtualClusterProDistroPrivateNodes     FeatureName = "private nodes"
	VirtualClusterProDistroTranslatePatches FeatureName = "patches"
	VirtualClusterProxyResources            FeatureName = "resource proxy"
)

// GetFeatureDisplayName returns what people call a feature.
func GetFeatureDisplayName(name string) (string, error) { return name, nil }
