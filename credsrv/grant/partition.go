package grant

import (
	"regexp"
	"slices"
)

// Partition is a part of AWS with accounts, regions and host names of its own.
type Partition struct {
	Name          string   // as in ARNs: "aws", "aws-cn"
	Suffixes      []string // of its endpoints' names: "amazonaws.com"
	DefaultRegion string

	regions *regexp.Regexp
}

// HasRegion reports whether a region's name has the form of this partition's.
// Regions are added without notice, so there is no list of them.
func (p Partition) HasRegion(region string) bool {
	return p.regions != nil && p.regions.MatchString(region)
}

// partitions are those that the SDK knows (partitions.json).
var partitions = []Partition{
	newPartition("aws", "us-east-1", `(us|eu|ap|sa|ca|me|af|il|mx)`, "amazonaws.com", "api.aws"),
	newPartition("aws-cn", "cn-northwest-1", `cn`, "amazonaws.com.cn"),
	newPartition("aws-us-gov", "us-gov-west-1", `us-gov`, "amazonaws.com"),
	newPartition("aws-iso", "us-iso-east-1", `us-iso`, "c2s.ic.gov"),
	newPartition("aws-iso-b", "us-isob-east-1", `us-isob`, "sc2s.sgov.gov"),
	newPartition("aws-iso-e", "eu-isoe-west-1", `eu-isoe`, "cloud.adc-e.uk"),
	newPartition("aws-iso-f", "us-isof-south-1", `us-isof`, "csp.hci.ic.gov"),
	newPartition("aws-eusc", "eusc-de-east-1", `eusc-(de)`, "amazonaws.eu"),
}

// newPartition makes a row. The SDK's pattern ends in \w+; a region's name becomes
// part of a host name, so here it is what real ones are made of.
func newPartition(name, region, prefix string, suffixes ...string) Partition {
	return Partition{
		Name:          name,
		Suffixes:      suffixes,
		DefaultRegion: region,
		regions:       regexp.MustCompile(`^` + prefix + `-[a-z0-9]{1,32}-[0-9]{1,3}$`),
	}
}

func findPartition(match func(Partition) bool) (Partition, bool) {
	i := slices.IndexFunc(partitions, match)
	if i < 0 {
		return Partition{}, false
	}
	return partitions[i], true
}

func partitionNamed(name string) (Partition, bool) {
	return findPartition(func(p Partition) bool { return p.Name == name })
}

func partitionOf(region string) (Partition, bool) {
	return findPartition(func(p Partition) bool { return p.HasRegion(region) })
}
